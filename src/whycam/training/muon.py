"""Muon: steps of convolution filters made orthogonal, at a constant norm of the filters; Nesterov SGD for all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from whycam.training.sgd import decay_factor

# Of the odd polynomial a·x + b·x³ + c·x⁵ whose repetition brings singular values near 1 the quickest (Jordan, 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).

    A group with ``orthogonal`` holds convolution filters, each seen as a matrix of as many rows as it has output
    channels. Its Nesterov momentum is replaced by the nearest orthogonal matrix, so that every direction moves alike.
    Before the step the filters are scaled to the norm √rows, which a following normalisation layer undoes: the step is
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


def orthogonalised(matrices: Sequence[Tensor], repetitions: int = 5) -> list[Tensor]:
    """For each (rows, …) tensor, seen as a matrix U·S·Vᵀ, about U·Vᵀ · √max(1, rows / columns), in its own shape.

    By Newton–Schulz iteration, which leaves singular values between about 0.7 and 1.2; those below a hundredth of the
    largest may stay smaller. Matrices of one shape are multiplied together; on a GPU in bfloat16, which is exact enough
    for a direction.
    """
    found: list[Tensor] = list(matrices)
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        shapes.setdefault((len(matrix), matrix[0].numel()), []).append(index)
    a, b, c = NEWTON_SCHULZ
    for (rows, columns), places in shapes.items():
        x = torch.stack([matrices[index].reshape(rows, columns) for index in places])
        x = x.bfloat16() if x.is_cuda and x.dtype == torch.float32 else x
        x = x.mT if rows > columns else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(repetitions):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = (x.mT if rows > columns else x) * max(1.0, rows / columns) ** 0.5
        for index, matrix in zip(places, x, strict=True):
            found[index] = matrix.reshape(matrices[index].shape).to(matrices[index].dtype)
    return found


def scale_to_rows(matrices: list[Tensor]) -> None:
    """Give each (rows, …) tensor the norm √rows, in place; one that is zero stays so."""
    for matrix, norm in zip(matrices, torch._foreach_norm(matrices), strict=True):
        # By no number so small that √rows divided by it overflows: zero times that would not be zero.
        matrix.mul_(len(matrix) ** 0.5 / norm.clamp_min(torch.finfo(norm.dtype).eps))
