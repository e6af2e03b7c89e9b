"""Muon: steps of convolution filters made orthogonal, at a constant norm of the filters; Nesterov SGD for all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whycam.training.sgd import decay_factor

# Of the odd polynomial a·x + b·x³ + c·x⁵ whose repetition brings singular values near 1 the quickest (Jordan, 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).

    A group with ``orthogonal`` holds convolution filters, each seen as a matrix of as many rows as it has output
    channels. Its Nesterov momentum is replaced by the nearest orthogonal matrix, so that every direction moves alike.
    Before the step the filters are scaled to the norm √rows, which a following normalization layer undoes: the step is
    then a fraction ``lr`` of the weights, whatever they have grown to, and weight decay has nothing left to do.

    Every other group takes the step of SGD with Nesterov momentum and decoupled weight decay.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients that there are."""
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
            scale_to_rows(parameters)
            steps = orthogonalised(steps)
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


def orthogonalised(matrices: Sequence[Tensor], repetitions: int = 5, fill: bool | None = None) -> list[Tensor]:
    """For each (rows, …) tensor, seen as a matrix U·S·Vᵀ, about U·Vᵀ · √max(1, rows / columns), in its own shape.

    By Newton–Schulz iteration, which leaves singular values between about 0.7 and 1.2; those below a hundredth of the
    largest may stay smaller. Matrices of one shape are multiplied together; with ``fill`` (None: on a GPU, where a
    product's launch costs more than its arithmetic) all whose shorter side is the same, the longer one filled up with
    zeros, which change nothing. On a GPU this is done in bfloat16, which is exact enough for a direction.
    """
    found: list[Tensor] = list(matrices)
    groups: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for index, matrix in enumerate(matrices):
        short, long = sorted((len(matrix), matrix[0].numel()))
        width = 0 if (matrix.is_cuda if fill is None else fill) else long
        groups.setdefault((short, width, matrix.dtype), []).append(index)
    a, b, c = NEWTON_SCHULZ
    for places in groups.values():
        flat = [matrices[index].flatten(1) for index in places]
        wide = [matrix.mT if len(matrix) > matrix.shape[1] else matrix for matrix in flat]
        long = max(matrix.shape[1] for matrix in wide)
        x = torch.stack([F.pad(matrix, (0, long - matrix.shape[1])) for matrix in wide])
        x = x.bfloat16() if x.is_cuda and x.dtype == torch.float32 else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(repetitions):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for index, whole, mine, given in zip(places, x.to(flat[0].dtype), wide, flat, strict=True):
            step = whole[:, : mine.shape[1]]
            if given is not mine:
                step = step.mT * (len(given) / given.shape[1]) ** 0.5
            found[index] = step.reshape(matrices[index].shape)
    return found


def scale_to_rows(matrices: list[Tensor]) -> None:
    """Give each (rows, …) tensor the norm √rows, in place; one that is zero stays so."""
    factors = list(torch._foreach_norm(matrices))
    # By no number so small that √rows divided by it overflows: zero times that would not be zero.
    torch._foreach_clamp_min_(factors, torch.finfo(factors[0].dtype).eps)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(matrix) ** 0.5 for matrix in matrices])
    torch._foreach_mul_(matrices, factors)
