"""Which GPU a table means by the name of a system, and whose profile answers for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.profile import Profile, Section

SIGNS = (
    ("gb300", "gb300-nvl72"), ("gb200", "gb200-nvl72"), ("b300", "gb300-nvl72"), ("b200", "b200-sxm"), ("h200", "h200-sxm"), ("h100",
    "h100-sxm"),
    ("h800", "h800-sxm"), ("h20", "h20"), ("a100", "a100-sxm-80"), ("l40s", "l40s"), ("mi3", "mi300x"), ("hopper", "h100-sxm"),
)  # fmt: skip
"""What names of systems contain, and the preset that it means; the first that fits. ``hopper`` is a node of eight H100 or H200."""

RACKS = ("gb200-nvl72", "gb300-nvl72")
"""Presets of which neighbouring nodes are joined by NVLink."""

TRAY = 4
"""GPUs on one node of such a rack."""

KIN = {
    "gb300-nvl72": ("gb200-nvl72",), "b200-sxm": ("gb200-nvl72",), "l40s": ("a100-sxm-80",), "h100-sxm": ("h200-sxm",), "h200-sxm":
    ("h100-sxm",),
}  # fmt: skip
"""Whose profile is asked first where a GPU has none of its own."""

OTHERS = ("h200-sxm", "h100-sxm", "gb200-nvl72", "a100-sxm-80", "h20")
"""Whose profiles are asked after that."""


def preset_of(system: str) -> str:
    """Return the GPU preset that a system's name means, or an empty text.

    Examples
    --------
    >>> preset_of("h200_sxm"), preset_of("NVIDIA GB200"), preset_of("a100_dgx"), preset_of("tpu_v5")
    ('h200-sxm', 'gb200-nvl72', 'a100-sxm-80', '')
    """
    name = system.lower()
    return next((preset for sign, preset in SIGNS if sign in name), "")


def presets_of(systems: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the preset of every row; see :func:`preset_of`."""
    known = {str(system): preset_of(str(system)) for system in np.unique(systems)}
    return np.asarray([known[str(system)] for system in systems], dtype=np.str_)


def peaks(presets: NDArray[np.str_], quantity: str) -> Floats:
    """Return a figure of the data sheet of each row's GPU (``nvlink``, ``nic``, ``memory_bandwidth``, ``sms``); NaN of an unknown one."""
    known: dict[str, Gpu] = gpu_presets()
    return np.asarray([float(getattr(known[str(name)], quantity)) if str(name) in known else np.nan for name in presets])


def whose_section(profiles: Mapping[str, Profile], preset: str, name: str) -> tuple[Section | None, bool]:
    """Return the section that answers for a GPU, and whether it was fitted on another one.

    Profiles are looked up by the GPU that they were fitted on: its own, then its kin's, then any that has such a section.
    """
    for candidate in (preset, *KIN.get(preset, ()), *OTHERS):
        for profile in profiles.values():
            if profile.gpu == candidate and name in profile.sections:
                section = profile.sections[name]
                return section, candidate != preset or bool(section.carried_from)
    return None, False


def unknown_system(system: str) -> str:
    """Return why a system without a preset is not predicted."""
    return (
        f"no GPU preset goes by the system name {system!r}; its data sheet is needed to carry a fitted model over (compute.csv, "
        "exchange.csv and layer.csv of 'moesim measure' need none)"
    )
