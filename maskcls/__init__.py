"""maskcls: how a mask is worn, gender and age group from face photos.

    from maskcls import train, export, load

    train("data/train")
    export("runs", "onnx")
    print(load("onnx").predict("photo.jpg"))

`import maskcls` loads nothing else. These three are in `maskcls.api`; what they are made of is in
`maskcls.training`, `maskcls.onnx` and `maskcls.runtime`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskcls.api import export, load, train

__version__ = "0.1.0"
__all__ = ["export", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from maskcls import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
