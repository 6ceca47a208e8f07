"""Benchmarks are no package that is installed: they are imported from the checkout, as `python -m` does there."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
