"""How uneven the loads of experts and GPUs are. An expert's load is counted before drops, a GPU's after them and with padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base import loads
from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import expert_loads, mean_over_layers, rank_loads, whole


def _peaks(record: Record, of: str) -> Floats:
    """Return float[rows of layers], max / mean of ``rank`` or ``expert`` loads; 1 where there is no load."""
    table = record.tables["layers"]
    most, mean = (np.asarray(table[f"{of}_{what}"], dtype=np.float64) for what in ("max", "mean"))
    return np.divide(most, mean, out=np.ones(len(table)), where=mean > 0)


@register("metric", "rank_max_over_mean")
@dataclass(frozen=True, slots=True, kw_only=True)
class RankMaxOverMean:
    """Rows of the fullest GPU divided by the mean over GPUs, mean over MoE layers; 1 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return mean_over_layers(record, _peaks(record, "rank"))


@register("metric", "expert_max_over_mean")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMaxOverMean:
    """Routes to the most loaded expert divided by the mean over experts, mean over MoE layers; 1 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return mean_over_layers(record, _peaks(record, "expert"))


@register("metric", "maxvio")
@dataclass(frozen=True, slots=True, kw_only=True)
class MaxVio:
    """MaxVio of arXiv 2408.15664: max / mean - 1 of the expert loads of a step, mean over MoE layers; 0 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return mean_over_layers(record, _peaks(record, "expert") - 1.0)


@register("metric", "maxvio_global")
@dataclass(frozen=True, slots=True, kw_only=True)
class MaxVioGlobal:
    """MaxVio of all measured steps together (arXiv 2408.15664 calls it global): max / mean - 1 of expert loads, mean over MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each."""
        return whole(record, float(loads.maxvio(expert_loads(record)).mean()))


@register("metric", "balancedness")
@dataclass(frozen=True, slots=True, kw_only=True)
class Balancedness:
    """SGLang's balancedness: (mean + 1e-5) / (max + 1e-5) of the rows of GPUs, mean over MoE layers; 1 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return loads.balancedness_sglang(rank_loads(record))


@register("metric", "balancedness_vllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class BalancednessVllm:
    """vLLM's balancedness: sum over MoE layers of the mean rows of GPUs / sum of the maxima; 1 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return loads.balancedness_vllm(rank_loads(record))


@register("metric", "rank_cv")
@dataclass(frozen=True, slots=True, kw_only=True)
class RankCv:
    """Standard deviation (over n) of the rows of GPUs divided by their mean, mean over MoE layers; 0 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return np.asarray(loads.coefficient_of_variation(rank_loads(record)).mean(axis=-1))


@register("metric", "expert_cv")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCv:
    """Standard deviation (over n) of the expert loads of all measured steps together divided by their mean, mean over MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each."""
        return whole(record, float(loads.coefficient_of_variation(expert_loads(record)).mean()))


@register("metric", "expert_gini")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGini:
    """Gini coefficient of the expert loads of all measured steps together, mean over MoE layers; 0 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each."""
        return whole(record, float(loads.gini(expert_loads(record)).mean()))


@register("metric", "normalised_entropy")
@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedEntropy:
    """Entropy of the expert loads of all measured steps together divided by ln E, mean over MoE layers; 1 is balanced."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each."""
        return whole(record, float(loads.normalised_entropy(expert_loads(record)).mean()))


@register("metric", "dead_experts")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadExperts:
    """Experts of a layer that no route chose in any measured step, mean over MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each."""
        return whole(record, float(loads.dead(expert_loads(record)).mean()))
