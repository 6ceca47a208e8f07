"""VideoMAR outside PyTorch: `Pipeline` makes a `Video` of a picture and a sentence.

Nothing else is loaded by `import videomar` itself; a name brings what it needs when it is first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomar.runtime.pipeline import Pipeline, Video

    __version__: str

__all__ = ["Pipeline", "Video", "__version__"]

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file():  # a checkout, whose other packages lie beside this one
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("videomar")
    if name in __all__:
        from videomar.runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'videomar' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
