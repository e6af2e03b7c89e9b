"""What a study's clusters of errors say that its pairs of classes do not.

python benchmarks/cluster_use.py STUDY

Prints the normalized mutual information (0: nothing in common, 1: the same partition; entropies averaged) between the
clusters and the predicted classes, the labels and the ordered pairs of classes, and how the largest pairs of each
cluster are made up. Reads the study folder alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Hashable, Sequence

from whycam.study import Study


def shared(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Normalized mutual information of two labellings of the same things."""
    n, left, right, both = len(a), Counter(a), Counter(b), Counter(zip(a, b, strict=True))
    mutual = sum(m / n * math.log(m * n / (left[x] * right[y])) for (x, y), m in both.items())
    entropy = [-sum(m / n * math.log(m / n) for m in counts.values()) for counts in (left, right)]
    return mutual / (sum(entropy) / 2) if sum(entropy) else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    study = Study.load(parser.parse_args().study)
    if study.clusters is None:
        raise SystemExit(f"no clusters in this study: {study.why_no_neighbors or 'too few errors'}")
    cluster = dict(zip(study.clusters["id"].to_pylist(), study.clusters["cluster"].to_pylist(), strict=True))
    rows = study.errors.select(["id", "label", "predicted"]).to_pylist()
    clusters = [cluster[row["id"]] for row in rows]
    pairs = [(row["label"], row["predicted"]) for row in rows]
    within = [
        Counter(pair for pair, c in zip(pairs, clusters, strict=True) if c == k) for k in range(max(clusters) + 1)
    ]
    # A cluster that is one confusion, in both directions, tells nothing new.
    known = [max(Counter(frozenset(p) for p in found.elements()).values()) / found.total() for found in within]
    print(
        json.dumps(
            {
                "errors": len(rows),
                "clusters": len(within),
                "pairs": len(set(pairs)),
                "shared_with_predicted": round(shared(clusters, [p for _, p in pairs]), 3),
                "shared_with_label": round(shared(clusters, [a for a, _ in pairs]), 3),
                "shared_with_pair": round(shared(clusters, pairs), 3),
                "clusters_mostly_one_confusion": sum(share > 0.5 for share in known),
                "label_issues": study.label_issues["suspect"].to_pylist().count(True),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
