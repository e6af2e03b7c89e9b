"""``python short_of_memory.py MIB COMMAND …``: the command line with so much more memory than torch's import took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from whycam.cli.main import main

# The first products start threads and load code; they are not what is to fail.
torch.nn.functional.conv2d(torch.zeros(8, 3, 32, 32), torch.zeros(8, 3, 3, 3))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[2:]))
