"""Numbers as people read them: labels of metrics, values with units and intervals, one imbalance under its many names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.base.units import DIMENSIONS, format_quantity
from moesim.facts.record import Result, Table, Value

LABELS = {
    "step_time": "step time",
    "step_time_if_balanced": "if perfectly balanced",
    "step_time_if_no_communication": "if communication were free",
    "tokens_per_second": "throughput",
    "waiting_share": "waiting, of the step",
    "maxvio": "MaxVio",
    "maxvio_global": "MaxVio, global",
    "rank_max_over_mean": "GPU load, max ÷ mean",
    "expert_max_over_mean": "expert load, max ÷ mean",
    "rank_cv": "GPU load, coefficient of variation",
    "expert_cv": "expert load, coefficient of variation",
    "balancedness_vllm": "balancedness (vLLM)",
}
"""Where a metric's name with spaces is not what people say."""

SHARES = frozenset(
    {"drop_rate", "fully_dropped_tokens", "capacity_utilisation", "padding_waste", "waiting_share", "busiest_link_utilisation"}
)
"""Pure numbers that read best in per cent."""


PHASES = {
    "attention": ("attention", "attention_s"),
    "dense": ("dense layers", "dense_s"),
    "gate": ("router", "gate_s"),
    "shared": ("shared experts", "shared_s"),
    "experts": ("experts", "expert_s"),
    "dispatch": ("dispatch", "dispatch_transfer_s"),
    "combine": ("combine", "combine_transfer_s"),
    "waiting": ("waiting for peers", "waiting_s"),
    "tensor": ("tensor-parallel exchange", "tensor_s"),
    "gradients": ("gradients, not hidden", "gradient_exposed_s"),
    "optimiser": ("optimiser", "optimiser_s"),
    "bubble": ("pipeline bubble", "bubble_s"),
    "idle": ("idle", "idle_s"),
}
"""What the parts of a GPU's step are called, and their columns in ``gpus.csv``; dispatch and combine are the transfers alone."""

_PREFIXES = ((1e12, 1e12, "T "), (1e9, 1e9, "G "), (1e6, 1e6, "M "), (1e4, 1e3, "k "))
"""From which value on a number of something is written with which divisor and prefix."""


def phase_seconds(gpus: Table) -> dict[str, NDArray[np.float64]]:
    """Return float[G] seconds of every phase, which together are a GPU's step.

    Parameters
    ----------
    gpus : Table
        Of a result. What a GPU idles while the pipeline runs is its bubble, and the rest of its idle time is idle.
    """
    none = np.zeros(len(gpus))
    seconds = {name: np.maximum(np.asarray(gpus.columns.get(column, none), dtype=np.float64), 0.0) for name, (_, column) in PHASES.items()}
    seconds["bubble"] = np.minimum(seconds["bubble"], seconds["idle"])
    seconds["idle"] = seconds["idle"] - seconds["bubble"]
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One metric, ready to print."""

    name: str
    label: str
    value: str
    interval: str
    basis: str


def label(name: str) -> str:
    """Return what people call a metric.

    Examples
    --------
    >>> label("dispatch_transfer_time"), label("maxvio")
    ('dispatch transfer time', 'MaxVio')
    """
    return LABELS.get(name, name.replace("_", " "))


def capital(text: str) -> str:
    """Return a text with its first letter large, as it begins a title; the others stay.

    Examples
    --------
    >>> capital("drop rate"), capital("GPU load")
    ('Drop rate', 'GPU load')
    """
    return text[:1].upper() + text[1:]


def number(value: float) -> str:
    """Write a number with three significant digits and, if it is large, a word for the thousands.

    Examples
    --------
    >>> number(2519150.6), number(0.20147), number(1234.0)
    ('2.52 million', '0.201', '1,230')
    """
    for size, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size)}{word}"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return _digits(value)


def show(value: float | None, unit: str, *, share: bool = False) -> str:
    """Write a value with its unit; ``—`` when there is none.

    Examples
    --------
    >>> show(0.0260152, "s"), show(0.0912, "", share=True), show(None, "s")
    ('26.0 ms', '9.12 %', '—')
    """
    if value is None:
        return "—"
    if share:
        return f"{_digits(100 * value)} %"
    if unit in DIMENSIONS:
        return _three(format_quantity(value, unit)).replace(" us", " µs")
    if unit:
        for least, size, prefix in _PREFIXES:
            if abs(value) >= least * 0.9995:
                return f"{_digits(value / size)} {prefix}{unit}"
        return f"{number(value)} {unit}"
    return number(value)


def interval(value: Value, *, share: bool = False) -> str:
    """Write the interval of the mean, ``25.9 – 26.1 ms``; empty when there is none or its width is rounding noise."""
    if value.low is None or value.high is None or value.high - value.low <= 1e-9 * abs(value.high):
        return ""
    low, high = show(value.low, value.unit, share=share), show(value.high, value.unit, share=share)
    if low == high:
        return f"± {show((value.high - value.low) / 2, value.unit, share=share)}"
    first, _, unit = low.partition(" ")
    return f"{first} – {high}" if unit and high.partition(" ")[2] == unit else f"{low} – {high}"


def line(name: str, value: Value) -> Line:
    """Return one metric, ready to print."""
    share = name in SHARES and value.unit == ""
    return Line(
        name=name,
        label=label(name),
        value=show(value.value, value.unit, share=share),
        interval=interval(value, share=share),
        basis=value.basis,
    )


def change(whole: float, part: float) -> str:
    """Write how much smaller or larger ``part`` is, ``−22 %``.

    Examples
    --------
    >>> change(26.0, 20.3)
    '−22 %'
    """
    if not whole > 0:
        return ""
    return f"{100 * (part / whole - 1):+.0f} %".replace("-", "−").replace("+0 %", "±0 %").replace("−0 %", "±0 %")


def value_of(result: Result, name: str) -> float | None:
    """Return the value of a metric, None if the run has none."""
    metric = result.metrics.get(name)
    return None if metric is None else metric.value


def waiting_share(result: Result) -> float | None:
    """Return waiting time ÷ step time."""
    share, waiting, step = (value_of(result, name) for name in ("waiting_share", "waiting_time", "step_time"))
    if share is not None or waiting is None or not step:
        return share
    return waiting / step


def imbalance(result: Result) -> list[tuple[str, str, str, str]]:
    """Return the imbalance of this run under every name in use: of what, formula, who calls it what, value.

    The loads of GPUs are rows after drops, those of experts routes before. The names: SGLang and vLLM log balancedness,
    TensorRT-LLM an imbalance ratio, Megatron-LM an overload factor, NeMo a utilisation ratio, arXiv 2408.15664 MaxVio.
    """
    rank, expert = value_of(result, "rank_max_over_mean"), value_of(result, "expert_max_over_mean")
    rows: list[tuple[str, str, str, float | None]] = [
        ("GPUs", "max ÷ mean", "overload factor (Megatron-LM)", rank),
        ("GPUs", "(max − mean) ÷ mean", "imbalance ratio (TensorRT-LLM)", None if rank is None else rank - 1),
        ("GPUs", "mean ÷ max", "balancedness (SGLang)", value_of(result, "balancedness")),
        ("GPUs", "Σ mean ÷ Σ max", "balancedness (vLLM)", value_of(result, "balancedness_vllm")),
        ("experts", "max ÷ mean", "utilisation ratio, fullest (NeMo)", expert),
        ("experts", "(max − mean) ÷ mean", "MaxVio (loss-free balancing)", value_of(result, "maxvio")),
        ("experts, all steps", "(max − mean) ÷ mean", "MaxVio, global (loss-free balancing)", value_of(result, "maxvio_global")),
    ]
    return [(of, formula, name, _digits(value)) for of, formula, name, value in rows if value is not None]


def definitions(names: Mapping[str, Value]) -> dict[str, str]:
    """Return the first line of what each metric says of itself; empty for a metric whose plug-in is not there."""
    from moesim.base.registry import kinds

    known = kinds("metric")
    return {name: (inspect.getdoc(known[name]) or "").split("\n")[0] if name in known else "" for name in names}


def _digits(value: float) -> str:
    return "0" if value == 0 else f"{value:#.3g}".rstrip(".")


def _three(text: str) -> str:
    """Keep trailing zeros: three significant digits say how exact a number is meant."""
    match = re.fullmatch(r"(-?[\d.]+) (\S+)", text)
    return f"{_digits(float(match[1]))} {match[2]}" if match and match[1] not in {"0", "-0"} else text
