"""Deep feature factorization: known concepts are found, the reconstruction and the scores add up."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam.factorize import nmf


def test_known_concepts_are_found():
    draw = torch.Generator().manual_seed(0)
    concepts = torch.rand(3, 20, generator=draw) * (torch.rand(3, 20, generator=draw) > 0.6)
    maps = torch.rand(3, 200, generator=draw) * (torch.rand(3, 200, generator=draw) > 0.5)
    x = concepts.T @ maps
    start = [torch.rand(shape, generator=draw) for shape in ((20, 3), (3, 200))]
    w, h = nmf(x, *start, tolerance=1e-8, iterations=2000)
    assert float((x - w @ h).norm() / x.norm()) < 1e-3
    cosine = nn.functional.normalize(w.T) @ nn.functional.normalize(concepts).T
    assert cosine.amax(1).min() > 0.999
    assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2]


def test_concepts_maps_and_error_add_up_to_the_activations(model, batch):
    found = whycam.factorize(model, batch, "layer3[-2]", concepts=6)
    assert found.concepts.shape == (6, 256)
    assert found.maps.shape == (8, 6, 8, 8)
    assert found.heatmaps().shape == (8, 6, 32, 32)
    assert (found.layer, found.size) == ("layer3[-2]", (32, 32))
    assert found.scores is None
    assert min(float(found.concepts.min()), float(found.maps.min()), float(found.heatmaps().min())) >= 0
    torch.testing.assert_close(found.concepts.norm(dim=1), torch.ones(6))
    masses = found.maps.square().sum((0, 2, 3))
    assert masses.tolist() == sorted(masses.tolist(), reverse=True)
    kept = []
    handle = model.layer3[-2].register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        model(batch)
    handle.remove()
    rebuilt = torch.einsum("bkhw,kc->bchw", found.maps, found.concepts) + found.offset[:, None, None]
    error = float((kept[0] - rebuilt).norm() / (kept[0] - found.offset[:, None, None]).norm())
    assert error == pytest.approx(found.error, rel=1e-3)
    assert 0 < error < 0.8
    assert whycam.factorize(model, batch, "layer3[-2]", concepts=12).error < error


def test_scores_and_unexplained_part_add_up_to_the_logits(model, batch):
    found = whycam.factorize(model, batch, "layer4[-1]", concepts=10)
    kept = []
    handle = model.layer4[-1].register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        logits = model(batch)
    handle.remove()
    rebuilt = found.maps.mean((2, 3)) @ found.scores + model.linear.bias.detach()
    # The head is linear, so the unexplained part of the activations contributes to the logits separately.
    rest = kept[0] - torch.einsum("bkhw,kc->bchw", found.maps, found.concepts)
    unexplained = rest.mean((2, 3)) @ model.linear.weight.detach().T
    torch.testing.assert_close(rebuilt + unexplained, logits, rtol=1e-4, atol=1e-4)
    correlation = np.corrcoef(logits.flatten().numpy(), rebuilt.flatten().numpy())[0, 1]
    assert correlation > 0.9
    more = whycam.factorize(model, batch, "layer4[-1]", concepts=20)
    closer = more.maps.mean((2, 3)) @ more.scores + model.linear.bias.detach()
    assert (closer - logits).norm() < (rebuilt - logits).norm() / 2
    custom = whycam.factorize(model, batch, "layer4[-1]", concepts=10, classifier=lambda concepts: concepts[:, :4])
    torch.testing.assert_close(custom.scores, found.concepts[:, :4])


def test_result_depends_on_the_seed_alone_and_the_model_is_unchanged(model, batch):
    before = {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()}
    first = whycam.factorize(model, batch, "layer4[-1]", concepts=4)
    torch.rand(1)
    again = whycam.factorize(model, batch, "layer4[-1]", concepts=4)
    torch.testing.assert_close(first.maps, again.maps, rtol=0, atol=0)
    other = whycam.factorize(model, batch, "layer4[-1]", concepts=4, seed=1)
    assert not torch.equal(first.maps, other.maps)
    assert {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()} == before


def test_negative_activations_get_an_offset(model, batch):
    found = whycam.factorize(model, batch, "layer3[-2].bn1", concepts=4)
    assert float(found.offset.max()) <= 0
    assert float(found.offset.min()) < 0
    assert float(whycam.factorize(model, batch, "layer3[-2]", concepts=4).offset.abs().max()) == 0


def test_bad_arguments_are_named(model, batch):
    with pytest.raises(WhycamError, match="0 concepts cannot be distinguished here: give a number from 1 to 128"):
        whycam.factorize(model, batch, "layer4[-1]", concepts=0)
    for concepts in (2.5, True, "a", None):
        with pytest.raises(WhycamError, match=f"option concepts of factorize is a whole number, not {concepts!r}"):
            whycam.factorize(model, batch, "layer4[-1]", concepts=concepts)
    with pytest.raises(WhycamError, match="option iterations of factorize is a whole number of at least 1, not 0"):
        whycam.factorize(model, batch, "layer4[-1]", iterations=0)
    with pytest.raises(WhycamError, match="unknown layer 'layer9'"):
        whycam.factorize(model, batch, "layer9")
    broken = copy.deepcopy(model)
    broken.layer4[-1].bn2.weight.data.fill_(float("nan"))
    with pytest.raises(WhycamError, match=r"layer 'layer4.* gives NaN or infinite values"):
        whycam.factorize(broken, batch)
