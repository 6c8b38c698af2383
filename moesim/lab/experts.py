"""Experts: SwiGLU feed-forward networks over rows that are grouped by expert, with the kernels that a device offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, silu

from moesim.lab.device import DTYPES, Device

FLOAT8_MOST = 448.0
"""Largest number of float8 e4m3fn (OCP 8-bit floating point specification, table 1)."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The experts of one device: ``up`` [experts, 2 width, hidden] holds gate and up projection, ``down`` [experts, hidden, width].

    In float8 each row has a scale of its own: ``up_scale`` [experts, 2 width], ``down_scale`` [experts, hidden].
    """

    up: Any
    down: Any
    up_scale: Any = None
    down_scale: Any = None

    @property
    def parameters(self) -> tuple[Any, Any]:
        """What is trained."""
        return self.up, self.down


def make_weights(seed: int, experts: Sequence[int], hidden: int, width: int, dtype: str, device: Device) -> Weights:
    """Draw the weights of some experts; those of an expert do not depend on which device holds it.

    Parameters
    ----------
    seed : int
        Of the layer.
    experts : sequence of int
        Global numbers of the experts.
    hidden, width : int
        Elements of a token and of an inner activation.
    dtype : str
        A key of :data:`moesim.lab.device.DTYPES`.
    device : Device
        Where they go.
    """
    eight = dtype == "float8_e4m3fn"
    number, place = DTYPES[dtype], device.place
    up = torch.empty(len(experts), 2 * width, hidden, device=place, dtype=number)
    down = torch.empty(len(experts), hidden, width, device=place, dtype=number)
    scales = [torch.empty(len(experts), rows, device=place) if eight else None for rows in (2 * width, hidden)]
    for slot, expert in enumerate(experts):
        draw = device.local_generator(seed * 1_000_003 + expert)
        # Uniform numbers of the variance that keeps activations as large as the input: normal ones take longer than what is measured.
        for whole, scale, fan_in in ((up, scales[0], hidden), (down, scales[1], width)):
            drawn = (torch.rand(whole.shape[1:], generator=draw, device=place) - 0.5) * (12.0 / fan_in) ** 0.5
            if scale is None:
                whole[slot] = drawn.to(number)
            else:
                whole[slot], scale[slot] = to_float8(drawn)
    return Weights(up=up, down=down, up_scale=scales[0], down_scale=scales[1])


def to_float8(values: Any) -> tuple[Any, Any]:
    """Return float8 numbers and the float32 scale of each row: values = numbers × scale."""
    scale = values.abs().amax(dim=-1).float().clamp(min=1e-12) / FLOAT8_MOST
    return (values / scale.unsqueeze(-1)).to(torch.float8_e4m3fn), scale


Product = Callable[[Any, Any, Any], Any]
"""``product(rows, weights, scale)``: rows [rows, in] grouped by expert times weights [experts, out, in]."""


def grouped_product(kernel: str, counts: Sequence[int], device: Device) -> Product:
    """Return the grouped matrix product for given rows per expert.

    Parameters
    ----------
    kernel : str
        ``loop`` multiplies expert by expert and skips those without rows. ``bmm`` pads every expert to the most rows of any.
        ``grouped_mm`` is PyTorch's grouped kernel. ``scaled_mm_loop`` and ``scaled_grouped_mm`` are the same with float8 operands,
        a scale per row, and bfloat16 results; quantising the rows is part of the product.
    counts : sequence of int
        Rows of each expert.
    device : Device
        Where.
    """
    if kernel == "loop":
        return lambda rows, weights, _: _looped(rows, weights, counts)
    if kernel == "bmm":
        return _padded(counts, device)
    if kernel == "scaled_mm_loop":
        return lambda rows, weights, scale: _scaled(rows, weights, scale, counts)
    ends = torch.tensor(list(counts)).cumsum(0).to(device=device.place, dtype=torch.int32)
    if kernel == "scaled_grouped_mm":
        return lambda rows, weights, scale: _scaled_grouped(rows, weights, scale, ends)
    return lambda rows, weights, _: torch._grouped_mm(rows, weights.transpose(-2, -1), offs=ends)  # noqa: SLF001 - public since 2.10 only


def _looped(rows: Any, weights: Any, counts: Sequence[int]) -> Any:
    # Taken apart once: the gradient of weights[slot] would be one of all experts, filled and added up for each of them.
    each = weights.unbind(0)
    return torch.cat([linear(part, each[slot]) for slot, part in _busy(rows, counts)])


def _busy(rows: Any, counts: Sequence[int]) -> list[tuple[int, Any]]:
    parts = rows.split(list(counts))
    # One empty part keeps the shape of the result where no expert has rows.
    return [(slot, part) for slot, part in enumerate(parts) if part.shape[0]] or [(0, parts[0])]


def _padded(counts: Sequence[int], device: Device) -> Product:
    most = max(*counts, 1)
    index = torch.cat([torch.arange(slot * most, slot * most + rows) for slot, rows in enumerate(counts)]).to(device.place)

    def product(rows: Any, weights: Any, _: Any) -> Any:
        full = rows.new_zeros(len(counts) * most, rows.shape[1]).index_copy(0, index, rows).view(len(counts), most, -1)
        return torch.bmm(full, weights.transpose(1, 2)).view(len(counts) * most, -1).index_select(0, index)

    return product


def _scaled(rows: Any, weights: Any, scale: Any, counts: Sequence[int]) -> Any:
    small, of_row = to_float8(rows)
    parts = zip(_busy(small, counts), _busy(of_row.unsqueeze(1), counts), strict=True)
    multiply = torch._scaled_mm  # noqa: SLF001 - has no public name before 2.10
    return torch.cat(
        [multiply(part, weights[slot].t(), scale_a=row_scale, scale_b=scale[slot].unsqueeze(0), out_dtype=torch.bfloat16)
         for (slot, part), (_, row_scale) in parts]
    )  # fmt: skip


def _scaled_grouped(rows: Any, weights: Any, scale: Any, ends: Any) -> Any:
    small, of_row = to_float8(rows)
    multiply = torch._scaled_grouped_mm  # noqa: SLF001 - has no public name before 2.10
    return multiply(small, weights.transpose(-2, -1), of_row, scale, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True)


def swiglu(inner: Any) -> Any:
    """Return silu(gate) × up from [rows, 2 width]; the first half is the gate (Shazeer 2020, "GLU variants improve Transformer")."""
    gate, up = inner.chunk(2, dim=-1)
    return silu(gate) * up


def feed_forward(rows: Any, weights: Weights, product: Product) -> Any:
    """Return what experts make of their rows: down(silu(gate(x)) × up(x)), float[rows, hidden]."""
    if rows.shape[0] == 0:
        return rows.clone()
    return product(swiglu(product(rows, weights.up, weights.up_scale)), weights.down, weights.down_scale)
