"""The numbers of a scenario that can be uncertain: their keys, what they are now, and how they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.base.errors import MoesimError, did_you_mean
from moesim.base.fields import Marker, Number, Quantity, Whole
from moesim.base.units import format_quantity
from moesim.desk.shape import alternatives, field_types, marker_of
from moesim.facts.arrays import Floats
from moesim.facts.scenario import Scenario
from moesim.models.compute.grouped_gemm import GroupedGemmKernels
from moesim.models.compute.peaks import arithmetic_dtype
from moesim.models.compute.profiles import efficiency_in, profile_of
from moesim.models.stages import setting_of
from moesim.models.topology.achieved import DELAYS, datasheet_of, share_of
from moesim.study.sensitivity import Input

SECTIONS = ("cluster", "workload", "routing", "exchange", "compute", "policy")
"""Whose numbers are varied unless ranges say otherwise."""
COUNTED = frozenset({"workload.tokens_per_gpu", "workload.context"})
"""Whole numbers that are quantities; the others say how something is built, and are varied only where a range is given."""
BANDWIDTHS = (
    ("nvlink", "nvlink_efficiency", "nvlink"),
    ("nic", "nic_efficiency", "nic"),
    ("link", "link_efficiency", "mesh"),
    ("bandwidth", "efficiency", "nvlink"),
)
LATENCIES = (
    ("nvlink_latency", "nvlink"),
    ("nic_latency", "nic"),
    ("switch_latency", "switch"),
    ("link_latency", "mesh"),
    ("link_latency", "torus"),
    ("latency", "nvlink"),
)
"""Fields of topologies that may be null, and the class of links whose default may then stand for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A number of the scenario: None where the file leaves it to a default that is not known here."""

    key: str
    value: float | None
    marker: Marker

    @property
    def dimension(self) -> str:
        """Of a quantity; empty for plain numbers."""
        return self.marker.dimension if isinstance(self.marker, Quantity) else ""

    @property
    def whole(self) -> bool:
        """Whether only whole numbers will do."""
        return isinstance(self.marker, Whole)


def numbers(scenario: Scenario) -> dict[str, Known]:
    """Return every number of a scenario by its dotted key; those that are null have the value that stands for it, where it is known."""
    found = {known.key: known for known in _walk(scenario, "")}
    for key, value in _implied(scenario).items():
        if key in found and found[key].value is None:
            found[key] = replace(found[key], value=value)
    return found


def _walk(section: Any, path: str) -> Iterator[Known]:
    cls: type = type(section)
    for name, annotation in field_types(cls).items():
        key, value = f"{path}{name}", getattr(section, name)
        if key in {"compare", "plan", "sensitivity", "matrix", "plugins", "seed", "name"}:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if hasattr(type(value), "__pydantic_config__"):  # a section or a plug-in; what a file was read into has no keys
                yield from _walk(value, f"{key}.")
            continue
        for choice in alternatives(annotation):
            marker = marker_of(choice)
            if isinstance(marker, (Quantity, Number, Whole)) and (value is None or isinstance(value, (int, float))):
                yield Known(key=key, value=None if value is None else float(value), marker=marker)
                break


def _implied(scenario: Scenario) -> dict[str, float]:
    """Return what null stands for, for the numbers of links and kernels; each is checked to change nothing when written out."""
    cluster = scenario.cluster
    built = cluster.build()
    asked = [
        (name, share_of(link_class, built.gpu).value * datasheet_of(link_class, built.gpu))
        for name, efficiency, link_class in BANDWIDTHS
        if getattr(cluster, efficiency, None) is None  # an efficiency that is written is varied itself
    ]
    asked += [(name, DELAYS[link_class].value) for name, link_class in LATENCIES]
    found: dict[str, float] = {}
    for name, value in asked:
        if getattr(cluster, name, 0) is not None:
            continue
        try:
            other = replace(cluster, **{name: value}).build()
        except (MoesimError, ValueError):
            continue
        if _alike(other.bandwidth, built.bandwidth) and _alike(other.latency, built.latency):
            found.setdefault(f"cluster.{name}", value)
    return found | _kernels(scenario)


def _alike(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-12, atol=0.0))


def _kernels(scenario: Scenario) -> dict[str, float]:
    """Return the numbers of the kernels' profile that are in force."""
    compute = scenario.compute
    if compute.kind != "grouped_gemm":
        return {}
    cluster = scenario.cluster.build()
    setting = setting_of(scenario, _no_trace)
    known = profile_of(compute.profile, cluster.gpu.name)
    asked = {
        "compute_efficiency": efficiency_in(known, arithmetic_dtype(cluster.gpu, scenario.model.expert_dtype)).value,
        "memory_efficiency": known.memory_efficiency.value,
        "dense_efficiency": known.dense_efficiency.value,
        "launch": known.launch.value,
        "dense_launch": known.dense_launch.value,
    }
    now = compute.begin(setting)
    found = {}
    for name, value in asked.items():
        if getattr(compute, name) is not None:
            continue
        other = replace(compute, **{name: value}).begin(setting)
        if isinstance(now, GroupedGemmKernels) and replace(other, basis=now.basis) == now:
            found[f"compute.{name}"] = value
    return found


def _no_trace(*_: Any, **__: Any) -> Any:
    raise MoesimError("no kernel reads a recording")


def inputs(scenario: Scenario, ranges: Mapping[str, tuple[Any, Any]], spread: float) -> tuple[list[Input], list[str]]:
    """Return the inputs to vary, and what is wrong with the ranges.

    Parameters
    ----------
    scenario : Scenario
    ranges : mapping
        Least and most by key; if there are any, nothing else is varied.
    spread : float
        How far everything else goes, as a share of its value.
    """
    known = numbers(scenario)
    if not ranges:
        return [_around(one, spread) for one in known.values() if _is_varied(one)], []
    found, problems = [], []
    for key, ends in ranges.items():
        if key not in known:
            problems.append(f"{key} is no number of this scenario{did_you_mean(key, known)}")
            continue
        try:
            low, high = (float(known[key].marker.parse(end)) for end in ends)
        except ValueError as error:
            problems.append(f"{key}: {error}")
            continue
        if low > high:
            problems.append(f"{key}: the range begins at {ends[0]} and ends below that, at {ends[1]}")
            continue
        base = (low + high) / 2 if known[key].value is None else float(known[key].value or 0.0)
        found.append(Input(key=key, base=base, low=low, high=high, dimension=known[key].dimension, whole=known[key].whole))
    return found, problems


def _is_varied(one: Known) -> bool:
    """Tell whether a number is uncertain by nature: quantities, efficiencies and factors that are not 0."""
    if one.key.split(".", 1)[0] not in SECTIONS or not one.value or one.key.startswith("cluster.gpu."):
        return False
    return not one.whole or one.key in COUNTED


def _around(one: Known, spread: float) -> Input:
    """Return an input that goes as far down and up as its field allows."""
    base = one.value or 0.0
    low, high = sorted((base * (1 - spread), base * (1 + spread)))
    marker = one.marker
    if isinstance(marker, (Number, Whole)):
        low = low if marker.minimum is None else max(low, marker.minimum)
        high = high if marker.maximum is None else min(high, marker.maximum)
    if one.whole:
        low, high = float(round(low)), float(round(high))
    return Input(key=one.key, base=base, low=low, high=high, dimension=one.dimension, whole=one.whole)


def override(given: Input, value: float) -> str:
    """Return the word that lays a value of an input over a scenario.

    Examples
    --------
    >>> override(Input(key="cluster.nic", base=5e10, low=4e10, high=6e10, dimension="B/s"), 4e10)
    'cluster.nic=40 GB/s'
    """
    return f"{given.key}={text(given, value)}"


def text(given: Input, value: float) -> str:
    """Write a value of an input so that it reads back to the same number."""
    if given.dimension:
        return format_quantity(value, given.dimension, exact=True)
    return str(round(value)) if given.whole else repr(float(value))
