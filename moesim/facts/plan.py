"""The sections ``plan:`` and ``sensitivity:`` of a scenario file: what a study of it is to find out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Line, Marker, Number, Text, Whole, section
from moesim.facts.target import AT_MOST, Target, TargetField

OBJECTIVES = ("cost_per_hour", "cost_per_million_tokens", "gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a GPU costs for an hour, in the currency of the plan, and where that number comes from."""

    per_gpu_hour: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class PriceText(Marker):
    """A number, or a mapping with the number and its source."""

    def parse(self, value: Any) -> Price:
        """Read a price."""
        if isinstance(value, Price):
            return value
        if not isinstance(value, Mapping):
            return Price(per_gpu_hour=Number(0.0, exclusive=True).parse(value))
        unknown = sorted(set(value) - {"per_gpu_hour", "source"})
        if unknown or "per_gpu_hour" not in value:
            what = f"unknown key {unknown[0]!r}" if unknown else "missing key 'per_gpu_hour'"
            raise ValueError(f"{what}: a price is a number, or a mapping with the keys per_gpu_hour and source")
        source = Line().parse(value["source"]) if value.get("source") is not None else ""
        return Price(per_gpu_hour=Number(0.0, exclusive=True).parse(value["per_gpu_hour"]), source=source)

    def text(self, value: Price) -> Any:
        """Write a price."""
        return {"per_gpu_hour": value.per_gpu_hour, "source": value.source} if value.source else value.per_gpu_hour

    def json_schema(self) -> dict[str, Any]:
        """Describe the two forms."""
        number = {"type": "number", "exclusiveMinimum": 0.0}
        keys = {"per_gpu_hour": number, "source": {"type": "string", "minLength": 1}}
        return {"anyOf": [number, {"type": "object", "properties": keys, "required": ["per_gpu_hour"], "additionalProperties": False}]}


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What ``moesim plan`` chooses from, and what the choice must achieve.

    Parameters
    ----------
    candidates : mapping
        Lists of alternatives by dotted key, such as ``parallel.ep: [8, 16]`` or ``cluster: [{...}, {...}]``; every combination is a
        candidate.
    exclude : list of mapping
        Combinations that are left out: a candidate that has all the values of one of them is none.
    targets : list of text
        Such as ``step_time <= 60 ms``: bounds on means over steps. Beside the metrics there are ``gpus``, ``cost_per_hour`` and
        ``cost_per_million_tokens``.
    price : mapping
        What an hour of a GPU costs, by the GPU's name: a number, or ``{per_gpu_hour: 2.5, source: "..."}``.
    currency : str
        Of the prices, for tables.
    minimise : str or None
        ``cost_per_hour``, ``cost_per_million_tokens`` or ``gpus``. If left out, cost per hour where prices are given, otherwise GPUs.
    confidence : float
        A target is met if the mean is on the right side with this probability, by a one-sided Student-t bound over steps and replicates.
    replicates : int
        Runs of each candidate, with seeds that follow the scenario's.
    """

    candidates: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    exclude: tuple[Mapping[str, Any], ...] = ()
    targets: tuple[TargetField, ...] = ()
    price: Mapping[str, Annotated[Price, PriceText()]] = field(default_factory=dict)
    currency: Text = "USD"
    minimise: Annotated[str, Choice(OBJECTIVES)] | None = None
    confidence: Annotated[float, Number(0.5, 0.999999)] = 0.95
    replicates: Annotated[int, Whole(1, 1000)] = 1

    def __post_init__(self) -> None:
        for key, values in self.candidates.items():
            if not values:
                raise FieldError("candidates", f"the list of {key} is empty: give at least one value")
        contradiction = contradictory(self.targets)
        if contradiction:
            raise FieldError("targets", contradiction)
        if self.minimise and self.minimise.startswith("cost") and not self.price:
            raise FieldError("minimise", f"{self.minimise} needs prices: give plan.price, by the name of the GPU, or minimise gpus")
        priced = [target.metric for target in self.targets if target.metric.startswith("cost")]
        if priced and not self.price:
            raise FieldError("targets", f"{priced[0]} needs prices: give plan.price, by the name of the GPU")

    @property
    def objective(self) -> str:
        """What is made as small as possible."""
        return self.minimise or ("cost_per_hour" if self.price else "gpus")


def contradictory(targets: tuple[Target, ...]) -> str:
    """Return which two targets no number can meet, as a sentence; empty if there are none."""
    for first in targets:
        for second in targets:
            if first.metric != second.metric or first.of_memory != second.of_memory:
                continue
            if first.sense == AT_MOST != second.sense and first.limit < second.limit:
                return f"nothing can meet both {first} and {second}"
    return ""


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What ``moesim sensitivity`` varies, and how far.

    Parameters
    ----------
    ranges : mapping
        The least and the most of each input by dotted key, such as ``cluster.nic: [40 GB/s, 50 GB/s]`` or
        ``policy.capacity.factor: [1.0, 1.5]``. If left out, every number that a physical input or a policy has is varied by ``spread``.
    spread : float
        How far an input without a range goes down and up, as a share of its value.
    metric : str
        What is looked at; a registered metric.
    samples : int
        Base samples of the Sobol indices, a power of two: an analysis of d inputs takes samples * (d + 2) runs. 0 for none: then inputs are
        varied one at a time only.
    """

    ranges: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    spread: Annotated[float, Number(0.0, 0.99, exclusive=True)] = 0.2
    metric: Text = "step_time"
    samples: Annotated[int, Whole(0, 65536)] = 0

    def __post_init__(self) -> None:
        if self.samples == 1 or self.samples & (self.samples - 1):
            raise FieldError(
                "samples", f"{self.samples} is no power of two from 2 on: Sobol's points are even only in such numbers, such as 32"
            )
