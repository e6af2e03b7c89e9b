"""``python -m whycam``."""

import sys

from whycam.cli.main import main

sys.exit(main())
