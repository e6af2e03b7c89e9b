"""Check that a call leaves a model as it was: modes, hooks, gradients, parameters and values."""

from __future__ import annotations

import torch


def snapshot(model):
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identity": [id(p) for p in model.parameters()],
        "values": [value.clone() for value in model.state_dict().values()],
        "hooks": [
            len(hooks)
            for m in model.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ],
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    for name in ("modes", "requires_grad", "hooks", "identity"):
        assert after[name] == before[name], name
    for one, other in zip(after["grads"], before["grads"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    for one, other in zip(after["values"], before["values"], strict=True):
        assert torch.equal(one, other)
