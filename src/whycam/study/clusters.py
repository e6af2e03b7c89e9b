"""Groups of errors that look alike to the network: spherical k-means on the features that its head is given.

Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", 2001: k-means with the cosine
as similarity and unit vectors as centers. Starts are drawn as in k-means++ (Arthur and Vassilvitskii, 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.data.source import IndexArray

SEED = 0
PER_CLUSTER = 40
"""Errors that a cluster holds on average; with fewer errors than twice as many there are no clusters."""
MOST = 24
_STARTS, _ROUNDS = 8, 50

CLUSTERS = pa.schema(
    [
        ("index", pa.int32()),
        ("id", pa.string()),
        ("cluster", pa.int16()),  # 0 is the largest
        ("similarity", pa.float32()),  # cosine to the cluster's center; the largest is the cluster's medoid
    ]
)


def cluster_count(errors: int) -> int:
    """How many clusters so many errors are sorted into: about one in ``PER_CLUSTER``, at most ``MOST``."""
    return min(MOST, errors // PER_CLUSTER) if errors >= 2 * PER_CLUSTER else 0


def spherical_kmeans(features: Tensor, k: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Sort unit vectors into ``k`` clusters: the best of a few seeded starts, so the same input gives the same ones.

    Args:
        features: (N, D) float32 of length 1, N ≥ k ≥ 1.
        k: how many.
        seed: of the starts.

    Returns:
        (N,) cluster, largest first, and (N,) cosine to its center. A cluster may be empty where vectors repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor, Tensor] | None = None
    for _ in range(_STARTS):
        centers = _spread(features, k, generator)
        assigned = torch.full((len(features),), -1)
        for _ in range(_ROUNDS):
            similarity, nearest = (features @ centers.T).max(dim=1)
            if torch.equal(nearest, assigned):
                break
            assigned = nearest
            sums = torch.zeros_like(centers).index_add_(0, assigned, features)
            # A center that lost all its members stays where it was.
            centers = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centers)
        score = float(similarity.double().sum())
        if best is None or score > best[0]:
            best = score, assigned, similarity
    assert best is not None
    _, assigned, similarity = best
    by_size = torch.bincount(assigned, minlength=k).argsort(descending=True, stable=True)
    return by_size.argsort()[assigned], similarity


def _spread(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(k, D) of the vectors, each drawn with a probability that grows with its distance from those before."""
    chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    far = 1 - features @ features[chosen[0]]
    for _ in range(k - 1):
        weights = far.clamp_min(0)
        one = int(torch.multinomial(weights, 1, generator=generator)) if float(weights.sum()) > 0 else chosen[0]
        chosen.append(one)
        far = torch.minimum(far, 1 - features @ features[one])
    return features[chosen]


def cluster_rows(indices: IndexArray, ids: Sequence[str], clusters: Tensor, similarity: Tensor) -> pa.Table:
    """One row per error."""
    columns = [indices, list(ids), clusters.numpy(), similarity.numpy().astype(np.float32)]
    arrays = [pa.array(values, type=field.type, safe=False) for values, field in zip(columns, CLUSTERS, strict=True)]
    return pa.table(arrays, schema=CLUSTERS)
