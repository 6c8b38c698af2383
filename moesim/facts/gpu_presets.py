"""The GPUs that moesim knows by name, and the field type with which a topology names one."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from moesim.base.errors import PluginError, did_you_mean
from moesim.base.fields import Preset
from moesim.facts.gpu import Figure, Gpu
from moesim.facts.gpu_figures import FIGURES


@cache
def _built() -> dict[str, Gpu]:
    return {name: _gpu(name, figures) for name, figures in sorted(FIGURES.items())}


def _gpu(name: str, figures: tuple[Figure, ...]) -> Gpu:
    peak = {figure.quantity: figure.value for figure in figures if figure.kind == "peak"}
    return Gpu(
        name=name,
        flops={quantity.removeprefix("flops."): value for quantity, value in peak.items() if quantity.startswith("flops.")},
        memory=peak["memory"],
        memory_bandwidth=peak["memory_bandwidth"],
        nvlink=peak["nvlink"],
        nic=peak["nic"],
        sms=int(peak["sms"]),
    )


def gpu_presets() -> dict[str, Gpu]:
    """Return every shipped GPU by name: peaks of dense arithmetic, one direction of each link.

    Returns
    -------
    dict of str to Gpu
        Sorted by name; a fresh dictionary.
    """
    return dict(_built())


def figures(name: str) -> tuple[Figure, ...]:
    """Return every figure of one preset, peaks and measurements, each with its unit, direction, source and date.

    Raises
    ------
    PluginError
        If there is no preset of that name; the message names the nearest.
    """
    if name not in FIGURES:
        raise PluginError(f"unknown GPU {name!r}{did_you_mean(name, FIGURES)}")
    return FIGURES[name]


def achievable(name: str, quantity: str) -> Figure | None:
    """Return what was measured of a quantity on a preset's hardware, or None if nothing was.

    Parameters
    ----------
    name : str
        A preset.
    quantity : str
        ``memory``, ``memory_bandwidth``, ``nvlink``, ``nic``, ``mesh`` (the direct link of one pair of GPUs) or ``flops.<dtype>``.

    Raises
    ------
    PluginError
        If there is no preset of that name.

    Examples
    --------
    >>> achievable("h200-sxm", "nvlink").value
    311800000000.0
    """
    found = (figure for figure in figures(name) if figure.quantity == quantity and figure.kind == "achievable")
    return next(found, None)


GpuField = Annotated[Gpu, Preset(gpu_presets, Gpu)]
"""A field of a topology that takes ``h100-sxm`` or a mapping with the fields of :class:`~moesim.facts.gpu.Gpu`."""
