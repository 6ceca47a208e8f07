"""TensorRT-RTX as a fake: the same API under another name."""

from tensorrt import *  # noqa: F403
from tensorrt import __version__ as __version__
