"""For tools that call `setup.py`; the metadata stands in `pyproject.toml`.

pip install .                 # the library and its console commands: maskcls-train, ...
pip install '.[parquet]'      # plus prediction files in Parquet
make install                  # to work on the project: own .venv, editable, tested versions
"""

from setuptools import setup

setup()
