"""Measure how much a study's clusters of errors tell beyond the pairs of classes.

python benchmarks/cluster_use.py STUDY

Prints the normalized mutual information between the clusters and the predicted classes, the labels and the ordered
pairs (label, predicted class). 0 means unrelated, 1 means the same partition; the denominator is the mean of the two
entropies. Also prints in how many clusters one confusion makes up more than half of the errors. Reads only the study
folder.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

from sklearn.metrics import normalized_mutual_info_score

from whycam.study import Study


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
    # A cluster of mostly one confusion (two classes, in either direction) tells nothing new.
    shares = [max(Counter(frozenset(p) for p in found.elements()).values()) / found.total() for found in within]
    print(
        json.dumps(
            {
                "errors": len(rows),
                "clusters": len(within),
                "pairs": len(set(pairs)),
                "shared_with_predicted": round(normalized_mutual_info_score(clusters, [p for _, p in pairs]), 3),
                "shared_with_label": round(normalized_mutual_info_score(clusters, [a for a, _ in pairs]), 3),
                "shared_with_pair": round(normalized_mutual_info_score(clusters, [str(pair) for pair in pairs]), 3),
                "clusters_mostly_one_confusion": sum(share > 0.5 for share in shares),
                "label_issues": study.label_issues["suspect"].to_pylist().count(True),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
