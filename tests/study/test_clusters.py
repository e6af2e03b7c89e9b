"""Clusters of errors: planted clusters are found, the same input gives the same clusters."""

from __future__ import annotations

import torch
from torch import nn

from whycam.study.clusters import cluster_count, cluster_features


def test_planted_clusters_are_found():
    generator = torch.Generator().manual_seed(3)
    centers = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:5]
    sizes = (60, 40, 30, 20, 10)
    truth = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    noise = 0.1 * torch.randn(160, 16, generator=generator)
    features = nn.functional.normalize(centers[truth] + noise, dim=1)
    order = torch.randperm(160, generator=generator)
    clusters, similarity = cluster_features(features[order], 5)
    assert torch.equal(clusters, truth[order])  # the largest first, as they were planted
    assert similarity.min() > 0.8
    again, _ = cluster_features(features[order], 5)
    assert torch.equal(again, clusters)


def test_repeated_vectors_do_not_break_clusters():
    features = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1), dim=1)
    clusters, similarity = cluster_features(features, 4)
    assert len(clusters.unique()) == 2
    assert torch.allclose(similarity, torch.ones(40))


def test_few_errors_have_no_clusters():
    assert [cluster_count(n) for n in (0, 79, 80, 644, 10**6)] == [0, 0, 2, 16, 24]
