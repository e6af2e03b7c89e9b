"""The layer table of a network, in the layout of the original study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whycam.nn_utils import first_tensor, hookable_modules, hooked, instrumented

_MEBIBYTE = 1024**2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: its type and number.
        shape: of its output, without the batch.
        parameters: its own, without those of the layers inside it.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Summary:
    """The table's rows and totals; ``str()`` gives the table.

    Sizes are in MiB (labeled MB, as in the study), at four bytes per number: the input, every listed layer's output
    once forward and once backward, and the parameters.
    """

    rows: tuple[Row, ...]
    input_shape: tuple[int, ...]
    total: int
    trainable: int

    def __str__(self) -> str:
        line, double = "-" * 64, "=" * 64
        input_size = math.prod(self.input_shape) * _FLOAT_BYTES / _MEBIBYTE
        pass_size = 2 * sum(math.prod(row.shape) for row in self.rows) * _FLOAT_BYTES / _MEBIBYTE
        params_size = self.total * _FLOAT_BYTES / _MEBIBYTE
        table = [line, f"{'Layer (type)':>20}  {'Output Shape':>25} {'Param #':>15}", double]
        for row in self.rows:
            table.append(f"{row.name:>20}  {[-1, *row.shape]!s:>25} {row.parameters:>15,}")
        table += [
            double,
            f"Total params: {self.total:,}",
            f"Trainable params: {self.trainable:,}",
            f"Non-trainable params: {self.total - self.trainable:,}",
            line,
            f"Input size (MB): {input_size:0.2f}",
            f"Forward/backward pass size (MB): {pass_size:0.2f}",
            f"Params size (MB): {params_size:0.2f}",
            f"Estimated Total Size (MB): {input_size + pass_size + params_size:0.2f}",
            line,
        ]
        return "\n".join(table)


def summarize(model: nn.Module, input_shape: Sequence[int] = (3, 32, 32)) -> Summary:
    """Run one zero image through ``model`` and list its layers in the order in which they finish.

    Every module has a row, except containers (``Sequential``, ``ModuleList``) and the network itself. The model is
    not changed.

    Args:
        model: any module that takes one (1, C, H, W) tensor.
        input_shape: (C, H, W) of one image.

    Returns:
        The rows and totals. A parameter that several modules share is counted once.
    """
    rows: list[Row] = []

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is None:
            return
        # Not recursive: the layers inside a block have their own rows.
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        rows.append(Row(f"{type(module).__name__}-{len(rows) + 1}", tuple(tensor.shape[1:]), own))

    listed = (module for module in hookable_modules(model) if not isinstance(module, nn.Sequential | nn.ModuleList))
    hooks = ((module, record) for module in listed if module is not model)
    parameter = next(model.parameters(), torch.empty(0))
    image: Tensor = torch.zeros((1, *input_shape), device=parameter.device, dtype=parameter.dtype)
    with instrumented(model), torch.no_grad(), hooked(hooks):
        model(image)
    parameters = list(model.parameters())
    return Summary(
        rows=tuple(rows),
        input_shape=tuple(input_shape),
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )
