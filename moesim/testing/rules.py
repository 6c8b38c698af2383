"""What all checks share: saying which rule is broken, comparing answers, counting refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from moesim.base.errors import ContractBroken, MoesimError

T = TypeVar("T")


def demand(condition: bool | np.bool_, rule: str, message: str) -> None:
    """Raise ``ContractBroken(rule, message)`` unless the condition holds."""
    if not condition:
        raise ContractBroken(rule, message)


def name_of(slot: str, plugin: Any) -> str:
    """Return how messages call a plug-in, and check what every plug-in is: a frozen, documented dataclass of its slot.

    Raises
    ------
    ContractBroken
        If it is not.
    """
    cls = type(plugin)
    who = f"{slot} {getattr(cls, 'kind', cls.__name__)!r}"
    demand(dataclasses.is_dataclass(cls), "plug-in", f"{who} is not a dataclass: its fields are its YAML keys")
    demand(cls.__dataclass_params__.frozen, "plug-in", f"{who} is not frozen: state of a run belongs into what begin() returns")
    demand(bool((cls.__doc__ or "").strip()), "plug-in", f"{who} has no docstring: its first line is what users read in lists")
    there = getattr(cls, "slot", slot)
    demand(there == slot, "plug-in", f"{who} is registered in the slot {there!r}")
    return who


def same(one: Any, other: Any) -> bool:
    """Return whether two answers are equal: dataclasses field by field, arrays and sequences entry by entry, NaN like NaN."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        left, right = np.asarray(one), np.asarray(other)
        inexact = left.dtype.kind == "f" and right.dtype.kind == "f"
        return bool(np.array_equal(left, right, equal_nan=inexact))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, Sequence) and not isinstance(one, str):
        return isinstance(other, Sequence) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Trials:
    """Asks a plug-in in many settings; it may refuse some of them with an error for the user, but not all."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.answered = 0
        self.refusal: MoesimError | None = None

    def ask(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """Return the answer of a call, or None if the plug-in refuses with an error of :mod:`moesim.base.errors`."""
        try:
            answer = call(*arguments)
        except ContractBroken:
            raise
        except MoesimError as error:
            self.refusal = error
            return None
        self.answered += 1
        return answer

    def finish(self) -> None:
        """Raise if nothing was answered: then nothing was checked."""
        why = "" if self.refusal is None else f"; the last refusal: {self.refusal}"
        demand(self.answered > 0, "answers", f"{self.who} refuses every setting of the check{why}")


def whole_numbers(who: str, name: str, values: Any, shape: tuple[int, ...]) -> None:
    """Check that an array has a shape and holds integers of at least 0."""
    array = np.asarray(values)
    demand(array.shape == shape, "shape", f"{who}: {name} has shape {array.shape}, expected {shape}")
    demand(array.dtype.kind in "iu", "type", f"{who}: {name} holds {array.dtype}, expected integers")
    demand(not array.size or array.min() >= 0, "range", f"{who}: {name} holds {array.min() if array.size else 0}, expected at least 0")


def seconds(who: str, name: str, values: Any, shape: tuple[int, ...]) -> None:
    """Check that an array has a shape and holds finite numbers of at least 0."""
    array = np.asarray(values)
    demand(array.shape == shape, "shape", f"{who}: {name} has shape {array.shape}, expected {shape}")
    demand(array.dtype.kind == "f", "type", f"{who}: {name} holds {array.dtype}, expected floats")
    demand(bool(np.isfinite(array).all()), "range", f"{who}: {name} holds a number that is not finite")
    demand(not array.size or array.min() >= 0, "range", f"{who}: {name} holds {array.min() if array.size else 0}, expected at least 0")
