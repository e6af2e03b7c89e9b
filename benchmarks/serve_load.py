"""Load test of the live server: status codes and memory under 200 uploads at once, and the time of one explanation.

python benchmarks/serve_load.py [--uploads 200]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "app"))
from served import Served, encoded, photo_bytes

LAYERS = "layer=layer2[-2]&layer=layer3[-2]&layer=layer4[-1]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uploads", type=int, default=200)
    options = parser.parse_args()
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    large = encoded(noise)
    server = Served(["-m", "whycam", "serve", "cifar10-resnet18", "--port", "0", "--json"])
    try:
        small, trips, explained = photo_bytes(), [], []
        for _ in range(21):
            begin = time.perf_counter()
            answer = server.explain(small, LAYERS)
            trips.append(1000 * (time.perf_counter() - begin))
            explained.append(answer.json["ms"]["explain"])
        before = server.peak_mib()
        with ThreadPoolExecutor(options.uploads) as pool:
            begin = time.perf_counter()
            answers = list(pool.map(lambda _: server.explain(large, LAYERS, timeout=600), range(options.uploads)))
            took = time.perf_counter() - begin
        result = {
            "alone_ms": {"n": 20, "median": round(statistics.median(trips[1:]), 1), "max": round(max(trips[1:]), 1)},
            "alone_explain_ms_median": round(statistics.median(explained[1:]), 1),
            "uploads": options.uploads,
            "megabytes_each": round(len(large) / 1e6, 2),
            "statuses": dict(Counter(answer.status for answer in answers)),
            "all_answered_s": round(took, 1),
            "peak_mib_before": round(before),
            "peak_mib_after": round(server.peak_mib()),
            "afterwards": server.explain(small, LAYERS).status,
        }
    finally:
        status, _, _ = server.stop()
    print(json.dumps(result | {"exit_status": status}, indent=1))


if __name__ == "__main__":
    main()
