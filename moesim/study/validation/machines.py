"""Which GPU a table means by the name of a system, and whose profile answers for it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.profile import Profile, Section

SIGNS = tuple(
    (re.compile(rf"(?<![a-wyz]){sign}"), preset)
    for sign, preset in (
        (r"g?b[ _-]?300(?!\d)", "gb300-nvl72"),
        (r"gb[ _-]?200(?!\d)", "gb200-nvl72"),
        (r"b[ _-]?200(?!\d)", "b200-sxm"),
        (r"h[ _-]?200(?!\d)", "h200-sxm"),
        (r"h[ _-]?100(?!\d)", "h100-sxm"),
        (r"h[ _-]?800(?!\d)", "h800-sxm"),
        (r"h[ _-]?20(?!\d)", "h20"),
        (r"a[ _-]?100(?!\d)", "a100-sxm-80"),
        (r"l[ _-]?40[ _-]?s", "l40s"),
        (r"mi[ _-]?300[ _-]?x", "mi300x"),
        (r"hopper", "h100-sxm"),
    )
)
"""What names of systems contain, and the preset that it means; the first that fits. A letter before it makes another word of it
(``gh200``), but for the x of ``8xh100``. ``hopper`` is a node of eight H100 or H200."""

OTHER_BOARDS = (
    ("a100-sxm-80", re.compile(r"pci|(?<!\d)40[ _-]?gi?b?(?![a-z0-9])")),
    ("h100-sxm", re.compile(r"pci|nvl(?!ink|\d)")),
    ("h200-sxm", re.compile(r"pci|nvl(?!ink|\d)")),
    ("h800-sxm", re.compile(r"pci")),
)
"""Presets, and what names of boards contain that share theirs, but neither its memory nor its links."""

IN_RACK = re.compile(r"(?<![a-wyz])gb[ _-]?[23]00(?!\d)")
"""What names of systems contain whose neighbouring nodes are joined by NVLink: a node of eight B300 has a GB300's chips and no rack."""

TRAY = 4
"""GPUs on one node of an NVLink rack."""

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
    >>> preset_of("h200_sxm"), preset_of("NVIDIA GB200"), preset_of("a100_dgx"), preset_of("H100 PCIe")
    ('h200-sxm', 'gb200-nvl72', 'a100-sxm-80', '')
    """
    found = _named(system)
    return "" if _other_board(system, found) else found


def _named(system: str) -> str:
    name = system.lower()
    return next((preset for sign, preset in SIGNS if sign.search(name)), "")


def _other_board(system: str, preset: str) -> bool:
    return any(preset == alike and sign.search(system.lower()) for alike, sign in OTHER_BOARDS)


def in_rack(systems: NDArray[np.str_]) -> Bools:
    """Tell of which systems NVLink joins neighbouring nodes."""
    return np.asarray([IN_RACK.search(str(system).lower()) is not None for system in systems], dtype=np.bool_)


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
    rest = sorted({profile.gpu for profile in profiles.values()})
    for candidate in (preset, *KIN.get(preset, ()), *OTHERS, *rest):
        for profile in profiles.values():
            if profile.gpu == candidate and name in profile.sections:
                section = profile.sections[name]
                return section, candidate != preset or bool(section.carried_from)
    return None, False


def unknown_system(system: str) -> str:
    """Return why a system without a preset is not predicted."""
    alike = _named(system)
    if alike:
        return (
            f"the system {system!r} is a board with other memory and links than {alike}, and no GPU preset has its data sheet "
            "(compute.csv, exchange.csv and layer.csv of 'moesim measure' need none)"
        )
    return (
        f"no GPU preset goes by the system name {system!r}; its data sheet is needed to carry a fitted model over (compute.csv, "
        "exchange.csv and layer.csv of 'moesim measure' need none)"
    )
