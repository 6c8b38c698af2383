"""How well routers do, as metrics: experts without work, entropy, how fast loads change, and how much GPUs differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import mean_over_layers, ratio, sum_by_step


def _known_mean(record: Record, column: str) -> Floats:
    """Return float[steps], the mean over the layers in which a column is known; NaN where it is known in none."""
    values = np.asarray(record.tables["layers"][column], dtype=np.float64)
    known = ~np.isnan(values)
    return ratio(sum_by_step(record, "layers", np.where(known, values, 0.0)), sum_by_step(record, "layers", known))


@register("metric", "idle_experts")
@dataclass(frozen=True, slots=True, kw_only=True)
class IdleExperts:
    """Experts with less than 1 % of the mean load, mean over MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return mean_over_layers(record, record.tables["layers"]["idle_experts"])


@register("metric", "stagnant_experts")
@dataclass(frozen=True, slots=True, kw_only=True)
class StagnantExperts:
    """Experts with less than 10 % of the mean load, idle ones among them, mean over MoE layers: they learn next to nothing."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return mean_over_layers(record, record.tables["layers"]["stagnant_experts"])


@register("metric", "load_cv")
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCv:
    """Standard deviation of the experts' loads of a step over their mean, mean over MoE layers: how skewed their use is."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return _known_mean(record, "load_cv")


@register("metric", "load_entropy")
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntropy:
    """Entropy of the experts' loads over its maximum, mean over MoE layers: 1 if all are equal, 0 if one expert has all."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return _known_mean(record, "load_entropy")


@register("metric", "load_correlation")
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCorrelation:
    """Correlation of the experts' loads with those of the step before, mean over MoE layers; plans from the past need it near 1."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN in the first."""
        return _known_mean(record, "load_correlation")


@register("metric", "source_information")
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInformation:
    """Bits that the GPU of a token says about its expert, mean over MoE layers; above 0 where texts differ and experts specialise."""

    unit: ClassVar[str] = "bit"
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return _known_mean(record, "source_information")


@register("metric", "domain_information")
@dataclass(frozen=True, slots=True, kw_only=True)
class DomainInformation:
    """Specialisation: bits that the domain of a token says about its expert, mean over MoE layers; unknown where domains are."""

    unit: ClassVar[str] = "bit"
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN in steps whose routing does not say which domain a token is from."""
        return _known_mean(record, "domain_information")
