"""``python -m whycam``."""

import sys

from whycam.cli import main

sys.exit(main())
