"""Muon: orthogonalized steps for convolution filters, whose norm stays constant; Nesterov SGD for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.training.sgd import decay_factor

# Coefficients of a·x + b·x³ + c·x⁵. Repeated, this polynomial moves singular values close to 1 quickly (Jordan, 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).

    A group with ``orthogonal`` holds convolution filters, each read as a matrix with one row per output channel. Its
    Nesterov momentum is replaced by the nearest orthogonal matrix, so that all directions move by the same amount.
    Before the step the filters are scaled to the norm √rows. This does not change the network if a normalization layer
    follows; the step is then always a fraction ``lr`` of the weights, and weight decay is not needed.

    All other groups take a step of SGD with Nesterov momentum and decoupled weight decay.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if pairs := [(p, p.grad) for p in group["params"] if p.grad is not None]:
                self._step([p for p, _ in pairs], [gradient for _, gradient in pairs], group)
        return loss

    def _step(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        velocities = [self._velocity(p) for p in parameters]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        steps = list(torch._foreach_mul(velocities, momentum))
        torch._foreach_add_(steps, gradients)
        if group["orthogonal"]:
            normalize_filters(parameters)
            steps = orthogonalize(steps)
        elif group["weight_decay"]:
            torch._foreach_mul_(parameters, decay_factor(group))
        torch._foreach_mul_(steps, -lr)
        torch._foreach_add_(parameters, steps)

    def _velocity(self, parameter: Tensor) -> Tensor:
        slots = self.state[parameter]
        if "momentum_buffer" not in slots:
            slots["momentum_buffer"] = torch.zeros_like(parameter)
        velocity: Tensor = slots["momentum_buffer"]
        return velocity


def orthogonalize(matrices: Sequence[Tensor], iterations: int = 5, pad: bool | None = None) -> list[Tensor]:
    """For each (rows, …) tensor, read as a matrix U·S·Vᵀ: about U·Vᵀ · √max(1, rows / columns), in its own shape.

    Newton–Schulz iteration: the singular values end between about 0.7 and 1.2; those below a hundredth of the largest
    may stay smaller. Matrices of the same shape are multiplied as one batch. With ``pad``, so are all matrices with the
    same shorter side: the longer side is padded with zeros, which does not change the result. By default this is done
    on a GPU, where launching a product costs more than its arithmetic. On a GPU the products are in bfloat16, which is
    exact enough for a direction.
    """
    results: list[Tensor] = list(matrices)
    groups: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for index, matrix in enumerate(matrices):
        short, long = sorted((len(matrix), matrix[0].numel()))
        width = 0 if (matrix.is_cuda if pad is None else pad) else long
        groups.setdefault((short, width, matrix.dtype), []).append(index)
    a, b, c = NEWTON_SCHULZ
    for indices in groups.values():
        flat = [matrices[index].flatten(1) for index in indices]
        wide = [matrix.mT if len(matrix) > matrix.shape[1] else matrix for matrix in flat]
        long = max(matrix.shape[1] for matrix in wide)
        x = torch.stack([F.pad(matrix, (0, long - matrix.shape[1])) for matrix in wide])
        x = x.bfloat16() if x.is_cuda and x.dtype == torch.float32 else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for index, padded, matrix, given in zip(indices, x.to(flat[0].dtype), wide, flat, strict=True):
            step = padded[:, : matrix.shape[1]]
            if given is not matrix:
                step = step.mT * (len(given) / given.shape[1]) ** 0.5
            results[index] = step.reshape(matrices[index].shape)
    return results


def normalize_filters(matrices: list[Tensor]) -> None:
    """Scale each (rows, …) tensor to the norm √rows, in place; zero tensors stay zero."""
    factors = list(torch._foreach_norm(matrices))
    # Without a lower limit √rows / norm could overflow to infinity, and zero times infinity is NaN.
    torch._foreach_clamp_min_(factors, torch.finfo(factors[0].dtype).eps)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(matrix) ** 0.5 for matrix in matrices])
    torch._foreach_mul_(matrices, factors)
