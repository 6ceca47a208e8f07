"""`python -m videomar`."""

import sys

from videomar.cli import main

sys.exit(main())
