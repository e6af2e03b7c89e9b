"""Which images resemble each other: the head's features, nearest neighbors, clusters, suspected labels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import whycam
from whycam.data import take
from whycam.study import Config, run_study
from whycam.study.clusters import cluster_count, spherical_kmeans
from whycam.study.features import directions, features_of, find_head
from whycam.study.label_issues import label_issues
from whycam.study.neighbors import KINDS, Block, nearest, neighbor_rows, reduced
from whycam.study.tables import prediction_rows


class Scaled(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.inner(x) * self.scale


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x):
        return self.linear(self.linear(x.mean(dim=(2, 3))[:, :1].expand(-1, 10)))


class Tokens(nn.Module):
    """The first token's vector goes into the head; the layers before see every token."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(3, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.mix(x.flatten(2).transpose(1, 2))[:, 0])


POOLED = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_head_is_the_layer_that_gives_the_logits(model, batch):
    hooks = [(module, len(module._forward_hooks)) for module in model.modules()]
    head = find_head(model, batch[:1])
    assert (head.path, head.features) == ("linear", 512)
    assert [(module, len(module._forward_hooks)) for module in model.modules()] == hooks
    with features_of(model, head) as seen:
        logits = model.eval()(batch)
    assert torch.equal(head.module(seen[0]), logits)
    assert not head.module._forward_pre_hooks


@pytest.mark.parametrize(
    ("network", "path"),
    [
        (Tokens(), "head"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 10)), "3"),
        (POOLED, None),
        (Scaled(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 0.1), None),
        (Twice(), None),
    ],
)
def test_heads_of_other_networks(network, path, batch):
    head = find_head(network, batch[:1])
    assert (head and head.path) == path


def blocks_of(rng, n=300, classes=4, dimensions=6):
    label = torch.from_numpy(rng.integers(0, classes, n))
    predicted = torch.where(torch.from_numpy(rng.random(n) < 0.3), torch.from_numpy(rng.integers(0, classes, n)), label)
    features = nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, dimensions))), dim=1).float()
    features[17] = features[40] = features[203]  # equally near to everything
    return Block(torch.arange(n), label, predicted == label, features), predicted


def part(block, rows):
    return Block(block.index[rows], block.label[rows], block.correct[rows], block.features[rows])


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_neighbors_equal_a_slow_search(size):
    block, predicted = blocks_of(np.random.default_rng(0))
    wrong = ~block.correct
    runs = [part(block, slice(start, start + size)) for start in range(0, 300, size)]
    found = nearest(part(block, wrong), predicted[wrong], runs, shown=3, votes=5)
    cosine = (block.features @ block.features.T).numpy()
    for row, error in enumerate(np.flatnonzero(wrong.numpy())):
        for kind, k in zip(KINDS, (3, 3, 5), strict=True):
            wanted = {"true": block.label[error], "predicted": predicted[error]}.get(kind)
            allowed = [
                i for i in range(300)
                if (i != error if wanted is None else bool(block.correct[i]) and block.label[i] == wanted)
            ]  # fmt: skip
            order = sorted(allowed, key=lambda i: (-round(float(cosine[error, i]), 6), i))[:k]
            values, positions = found[kind]
            assert positions[row].tolist() == order
            np.testing.assert_allclose(values[row], cosine[error, order], atol=1e-6)


def test_where_there_are_fewer_neighbors_there_are_fewer_rows():
    features = torch.eye(3)
    block = Block(torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([False, True, True]), features)
    found = nearest(part(block, [0]), torch.tensor([1]), [block])
    rows = neighbor_rows(np.array([0]), found, lambda index: [f"i{i}" for i in index]).to_pylist()
    assert [(r["kind"], r["rank"], r["neighbour_id"]) for r in rows] == [
        ("predicted", 1, "i1"), ("predicted", 2, "i2"), ("any", 1, "i1"), ("any", 2, "i2"),
    ]  # fmt: skip


def test_larger_neighbors_are_reduced_and_small_ones_are_not():
    small = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert reduced(small) is small
    large = torch.randint(0, 256, (2, 3, 192, 96), dtype=torch.uint8)
    half = reduced(large)
    assert half.shape == (2, 3, 96, 48)
    mean = large.float().reshape(2, 3, 96, 2, 48, 2).mean(dim=(3, 5))
    assert (half.float() - mean).abs().max() <= 0.5


def test_clusters_that_are_there_are_found():
    generator = torch.Generator().manual_seed(3)
    centers = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:5]
    sizes = (60, 40, 30, 20, 10)
    truth = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    noise = 0.1 * torch.randn(160, 16, generator=generator)
    features = nn.functional.normalize(centers[truth] + noise, dim=1)
    order = torch.randperm(160, generator=generator)
    clusters, similarity = spherical_kmeans(features[order], 5)
    assert torch.equal(clusters, truth[order])  # the largest first, as they were planted
    assert similarity.min() > 0.8
    again, _ = spherical_kmeans(features[order], 5)
    assert torch.equal(again, clusters)


def test_repeated_vectors_do_not_break_clusters():
    features = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1), dim=1)
    clusters, similarity = spherical_kmeans(features, 4)
    assert len(clusters.unique()) == 2
    assert torch.allclose(similarity, torch.ones(40))


def test_few_errors_have_no_clusters():
    assert [cluster_count(n) for n in (0, 79, 80, 644, 10**6)] == [0, 0, 2, 16, 24]


def relations_of(logits, labels, features):
    """(predictions, neighbors) as a study makes them."""
    index = np.arange(len(labels))
    predictions = prediction_rows(index, [str(i) for i in index], labels, logits)
    predicted, correct = (torch.from_numpy(predictions[name].to_numpy().copy()) for name in ("predicted", "correct"))
    block = Block(torch.from_numpy(index), torch.from_numpy(labels), correct, directions(features).float())
    wrong = ~correct
    found = nearest(part(block, wrong), predicted[wrong].long(), [block])
    return predictions, neighbor_rows(index[wrong.numpy()], found, lambda i: [str(j) for j in i])


def test_labels_that_were_flipped_are_the_first_suspects(loaded):
    """Of real images some get a wrong label on purpose: those come before the network's own errors.

    Not before all: a good network's own errors are images that look like another class, and some labels are wrong.
    """
    model, spec = loaded
    source = whycam.open_source("bundled")
    with features_of(model, find_head(model, spec.preprocess(source.read([0])))) as seen, torch.inference_mode():
        logits = torch.cat([model.eval()(spec.preprocess(source.read(range(s, s + 50)))) for s in range(0, 1000, 50)])
    labels = np.asarray(source.labels).copy()
    right = np.flatnonzero(logits.argmax(1).numpy() == labels)
    flipped = right[:: len(right) // 40][:40]
    own = 1000 - len(right)
    assert own >= 40
    labels[flipped] = (labels[flipped] + 1 + np.arange(40) % 9) % 10
    rows = label_issues(*relations_of(logits, labels, torch.cat(seen))).to_pylist()
    assert len(rows) == own + 40
    ranks = [rank for rank, row in enumerate(rows) if row["index"] in flipped]
    rest = [rank for rank, row in enumerate(rows) if row["index"] not in flipped]
    # The probability that a flipped label ranks before an error of the network; by chance 0.5, give or take 0.06.
    auc = np.mean([a < b for a in ranks for b in rest])
    assert auc > 0.8
    found = [row["index"] in flipped for row in rows if row["suspect"]]
    assert sum(found) >= 32
    assert np.mean(found) > 0.5


def test_suspicion_equals_its_definition():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 90)
    logits = torch.from_numpy(rng.normal(size=(90, 3)) * 2 + 2 * np.eye(3)[labels])
    predictions, neighbors = relations_of(logits, labels, torch.from_numpy(rng.normal(size=(90, 4))))
    probability = logits.double().softmax(1).numpy()
    votes = {}
    for row in neighbors.to_pylist():
        if row["kind"] == "any":
            votes.setdefault(row["index"], []).append(labels[row["neighbour_index"]])
    rows = label_issues(predictions, neighbors).to_pylist()
    assert len(rows) == int((probability.argmax(1) != labels).sum()) > 10
    for row in rows:
        i, label, guess = row["index"], row["label"], row["predicted"]
        margin = probability[i, guess] - probability[i, label]
        ballot = [votes[i].count(guess), votes[i].count(label)]
        confident = probability[i, guess] >= np.mean(probability[labels == guess, guess])
        assert [row["votes_predicted"], row["votes_label"], row["votes"]] == [*ballot, 10]
        assert row["score"] == pytest.approx((margin + (ballot[0] - ballot[1]) / 10) / 2, abs=1e-6)
        assert row["confident"] == confident
        assert row["suspect"] == (confident and ballot[0] > ballot[1])
    keys = [(not row["suspect"], -row["score"]) for row in rows]
    assert keys == sorted(keys)
    alone = {row["index"]: row for row in label_issues(predictions, None).to_pylist()}
    assert all(row["score"] == pytest.approx(row["margin"]) and row["votes"] == 0 for row in alone.values())
    assert len(label_issues(predictions.filter(predictions["correct"]), pa.table(neighbors.slice(0, 0)))) == 0


def test_a_head_that_is_called_by_keyword_is_found():
    class Keyword(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(12, 3)

        def forward(self, x):
            return self.fc(input=x.flatten(1))

    model = Keyword()
    images = torch.rand(1, 3, 2, 2)
    head = find_head(model, images)
    assert (head.path, head.features) == ("fc", 12)
    with features_of(model, head) as seen:
        model(images)
    assert torch.equal(seen[0], images.flatten(1))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = POOLED
        self.top = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.top(self.features(x))


def wrapped_in_torch_compile(network):
    network.top = torch.compile(network.top, backend="eager")
    return "top._orig_mod.2"


def compiled_in_place(network):
    network.top.compile(backend="eager")
    return "top.2"


def compiled_by_its_forward(network):
    network.top.forward = torch.compile(network.top.forward, backend="eager")
    return "top.2"


def head_compiled_in_place(network):
    network.top[2].compile(backend="eager")
    return "top.2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
@pytest.mark.parametrize(
    "wrap", [wrapped_in_torch_compile, compiled_in_place, compiled_by_its_forward, head_compiled_in_place]
)
def test_the_head_inside_a_compiled_part_is_found_and_gives_its_features(wrap, batch):
    torch.manual_seed(0)
    network = Classifier().eval()
    with torch.inference_mode():
        expected = network.top[:2](network.features(batch))
        path = wrap(network)
        network(batch)  # what is compiled now knows of no hooks
        head = find_head(network, batch[:1])
        assert (head.path, head.features) == (path, 8)
        with features_of(network, head) as seen:
            network(batch)
        network(batch)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_study_of_a_network_with_a_compiled_part_has_neighbors(spec, batch, tmp_path):
    """The same as without: how a part is run says nothing of the images."""
    torch.manual_seed(0)
    network = Classifier().eval()
    source = take(whycam.open_source("bundled"), 40)
    config = Config(layers=("features[0]",), methods=("gradcam",), batch_size=8, baseline=0, score_images=0)
    plain = run_study(network, spec, source, tmp_path / "plain", config)
    path = wrapped_in_torch_compile(network)
    with torch.inference_mode():
        for images in (batch[:1], batch):
            network(images)
    study = run_study(network, spec, source, tmp_path / "compiled", config)
    assert study.why_no_neighbors is None
    assert study.manifest["features"] == {"layer": path, "length": 8}
    assert len(study.neighbors) > 0
    assert study.neighbors.equals(plain.neighbors)
