"""For tools that call `setup.py`; the metadata stands in `pyproject.toml`.

pip install '.[all]'          # the library and its console commands: maskcls-train, ...
pip install '.[runtime]'      # labelling with ONNX files on a CPU, without PyTorch
pip install '.[runtime-gpu]'  # the same with CUDA
make install                  # to work on the project: own .venv, editable, tested versions
"""

from setuptools import setup

setup()
