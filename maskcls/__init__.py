"""maskcls: how a mask is worn, gender and age group from face photos.

`import maskcls` loads nothing else; import the module you need:

    from maskcls.training import train
    from maskcls.runtime import inference
"""

__version__ = "0.1.0"
