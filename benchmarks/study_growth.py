"""How a whole study's time and peak memory grow with the number of images.

    python benchmarks/study_growth.py DATA [--sizes 1000 10000] [--rounds 3]

Each study is a process of its own, into a new folder: from start to the finished report. Memory is the largest resident
size of that process as the operating system counts it. Time is quoted per 1,000 images in units of the smallest size's,
because absolute times say more about the machine than about the program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(data: str, limit: int) -> dict[str, float]:
    """One study; its seconds, peak memory in MiB, errors, and the study's own timings."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study"
        command = [sys.executable, "-m", "whycam", "study", "cifar10-resnet18", data, "--out", str(out), "--json"]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--limit", str(limit)], stdout=subprocess.PIPE, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"the study of {limit} images failed")
        values = json.loads(output)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "seconds": seconds,
        "memory": usage.ru_maxrss / 1024,
        "errors": values["errors"],
        "folder": size / 2**20,
        **values["timings"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10, in any layout")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = {size: [] for size in options.sizes}
    for _ in range(options.rounds):
        for size, runs in results.items():
            runs.append(run(options.data, size))
    print(f"n = {options.rounds} runs each; medians (range)")
    print("images   errors  seconds              peak memory, MiB     folder, MiB")
    for size, runs in results.items():
        columns = []
        for name in ("seconds", "memory", "folder"):
            values = [entry[name] for entry in runs]
            columns.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"{size:<8} {runs[0]['errors']:<7} {columns[0]:<20} {columns[1]:<20} {columns[2]}")
        stages = {name: statistics.median(entry[name] for entry in runs) for name in ("predict", "explain", "measure")}
        print("         " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()))


if __name__ == "__main__":
    main()
