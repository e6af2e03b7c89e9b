"""Clusters of errors: k-means on the features that the network's last linear layer receives, at unit length."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.errors import missing_extra

SEED = 0
PER_CLUSTER = 40
"""Mean number of errors in a cluster. With fewer than two clusters' worth of errors there are no clusters."""
MAX_CLUSTERS = 24
_STARTS = 8


def cluster_count(errors: int) -> int:
    """Number of clusters for so many errors: about one in ``PER_CLUSTER``, at most ``MAX_CLUSTERS``; 0 below two."""
    return min(MAX_CLUSTERS, errors // PER_CLUSTER) if errors >= 2 * PER_CLUSTER else 0


def cluster_features(features: Tensor, k: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Sort vectors of length 1 into ``k`` clusters by k-means (Lloyd) from k-means++ starts.

    Between unit vectors the squared Euclidean distance is 2 − 2 × cosine, so k-means groups by cosine.

    Args:
        features: (N, D) float32 of length 1, N ≥ k ≥ 1.
        k: number of clusters. With fewer distinct vectors some clusters stay empty.
        seed: of the starts; the same features and seed give the same clusters.

    Returns:
        (N,) int64 cluster, the largest first, and (N,) float32 cosine to its center.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise missing_extra("scikit-learn", "study", "clustering errors") from error
    points = features.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        fitted = KMeans(k, n_init=_STARTS, random_state=seed).fit(points)
    labels = torch.from_numpy(fitted.labels_.astype(np.int64))
    centers = F.normalize(torch.from_numpy(fitted.cluster_centers_), dim=1)
    by_size = torch.bincount(labels, minlength=k).argsort(descending=True, stable=True)
    return by_size.argsort()[labels], (features.double() * centers[labels]).sum(dim=1).float()
