"""One thing that a plan must achieve: ``step_time <= 60 ms``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from moesim.base.errors import did_you_mean
from moesim.base.fields import Marker
from moesim.base.registry import kinds
from moesim.base.units import DIMENSIONS, format_quantity, parse_quantity

AT_MOST, AT_LEAST = "<=", ">="
OF_PLAN = {"gpus": "", "cost_per_hour": "cost/h", "cost_per_million_tokens": "cost"}
"""What a plan has beside the metrics of its run, and the unit; money is in whatever currency the prices are in."""

GPU_MEMORY = "of GPU memory"
_TARGET = re.compile(r"\s*([A-Za-z_][A-Za-z_0-9]*)\s*(<=|>=|≤|≥|<|>|==|=)\s*(.*?)\s*")
_SHARE = re.compile(r"(.+?)(\s*%)?\s+of\s+(?:the\s+)?gpu\s+memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on the mean of a metric.

    Parameters
    ----------
    metric : str
        A registered metric, or a key of ``OF_PLAN``.
    sense : str
        ``<=`` or ``>=``.
    limit : float
        In SI units; a share of the GPU's memory if ``of_memory``.
    unit : str
        Of the metric.
    of_memory : bool
        Whether the limit is a share of the memory of the candidate's GPU.
    """

    metric: str
    sense: str
    limit: float
    unit: str = ""
    of_memory: bool = False

    def limit_for(self, memory: float) -> float:
        """Return the limit in SI units on a GPU with so many bytes of memory."""
        return self.limit * memory if self.of_memory else self.limit

    def met_by(self, value: float, memory: float) -> bool:
        """Tell whether a number is on the right side."""
        limit = self.limit_for(memory)
        return value <= limit if self.sense == AT_MOST else value >= limit

    def miss(self, value: float, memory: float) -> float:
        """Return by how much a number misses, as a share of the limit (of 1 where the limit is 0); negative is room to spare."""
        limit = self.limit_for(memory)
        over = value - limit if self.sense == AT_MOST else limit - value
        return over / abs(limit) if limit else over

    def __str__(self) -> str:
        return f"{self.metric} {self.sense} {self.limit_text()}"

    def limit_text(self) -> str:
        """Return the limit as it may be written; reading it gives the same number."""
        short = f"{self.limit:g}" if float(f"{self.limit:g}") == self.limit else repr(self.limit)
        if self.of_memory:
            return f"{short} {GPU_MEMORY}"
        if self.unit in DIMENSIONS:
            return "0" if self.limit == 0 else format_quantity(self.limit, self.unit, exact=True)
        return f"{short}{f' {self.unit}' if self.unit == 'tokens/s' else ''}"


def parse_target(text: Any) -> Target:
    """Read ``step_time <= 60 ms``, ``drop_rate <= 1 %``, ``peak_memory <= 0.9 of GPU memory``, ``gpus <= 64``.

    Raises
    ------
    ValueError
        If it is no such text, the metric is unknown, or the unit is not the metric's.

    Examples
    --------
    >>> parse_target("drop_rate<=1%").limit
    0.01
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no target; write for example 'step_time <= 60 ms'")  # noqa: TRY004 - pydantic collects ValueError
    match = _TARGET.fullmatch(text)
    if match is None or not match[3]:
        raise ValueError(f"cannot read {text!r} as a target; write for example 'step_time <= 60 ms' or 'tokens_per_second >= 2e6'")
    metric, sense, rest = match[1], {"≤": AT_MOST, "≥": AT_LEAST}.get(match[2], match[2]), match[3]
    units = {**{name: str(getattr(cls, "unit", "")) for name, cls in kinds("metric").items()}, **OF_PLAN}
    if metric not in units:
        raise ValueError(f"unknown metric {metric!r} in the target {text!r}{did_you_mean(metric, units)}; 'moesim list metrics' shows all")
    if sense not in {AT_MOST, AT_LEAST}:
        raise ValueError(f"a target bounds a mean, so {sense!r} says too little or too much in {text!r}; write <= or >=")
    unit = units[metric]
    share = _SHARE.fullmatch(rest)
    if share is not None:
        if unit != "B":
            raise ValueError(f"{metric} is no amount of memory, so it cannot be bounded by a share of the GPU's memory")
        return Target(metric=metric, sense=sense, limit=_number(share[1], text) / (100.0 if share[2] else 1.0), unit=unit, of_memory=True)
    return Target(metric=metric, sense=sense, limit=_limit(rest, unit, metric, text), unit=unit)


def _limit(rest: str, unit: str, metric: str, text: str) -> float:
    if unit in DIMENSIONS:
        try:
            return parse_quantity(rest, unit)
        except ValueError as error:
            raise ValueError(f"{metric} is {DIMENSIONS[unit].name}: {error}") from None
    if unit:
        rest = rest.removesuffix(unit).strip()
    if rest.endswith("%"):
        if unit:
            raise ValueError(f"{metric} is counted in {unit}, not in %, in {text!r}")
        return _number(rest.removesuffix("%").strip(), text) / 100.0
    return _number(rest, text, unit)


def _number(word: str, text: str, unit: str = "") -> float:
    import math

    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in word:
        raise ValueError(f"{word!r} is not a number{f' of {unit}' if unit else ' without a unit'} in the target {text!r}")
    return number


@dataclass(frozen=True, slots=True)
class TargetText(Marker):
    """A target as one line of text."""

    def parse(self, value: Any) -> Target:
        """Read a target."""
        return value if isinstance(value, Target) else parse_target(value)

    def text(self, value: Target) -> str:
        """Write a target."""
        return str(value)

    def json_schema(self) -> dict[str, Any]:
        """Describe the text form."""
        return {
            "type": "string",
            "description": "a metric, <= or >=, and a number with the metric's unit",
            "examples": ["step_time <= 60 ms", "drop_rate <= 1 %", "peak_memory <= 0.9 of GPU memory"],
        }


TargetField = Annotated[Target, TargetText()]
