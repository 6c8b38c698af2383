"""Coefficients that change over training steps, or from layer to layer: a number, or corners of a broken line."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeAlias

import numpy as np

from moesim.base.fields import Marker, Number, Whole

Corners: TypeAlias = tuple[tuple[int, float], ...]
Depths: TypeAlias = tuple[tuple[float, float], ...]

LARGEST = 1000.0
"""No training has a weight, a rate or a spread of scores that is anywhere near; far beyond it scores overflow."""


@dataclass(frozen=True, slots=True)
class OverSteps(Marker):
    """A number, or a list of ``[step, number]`` between which it changes in a straight line; outside it stays at the first and the last."""

    minimum: float = 0.0
    maximum: float | None = None

    def parse(self, value: Any) -> Corners:
        """Accept a number, or corners whose steps increase."""
        number = Number(self.minimum, self.maximum)
        if not isinstance(value, (list, tuple)):
            return ((0, number.parse(value)),)
        if not value:
            raise ValueError("the list is empty: give a number, or corners such as [[0, 0], [1000, 0.01]]")
        corners = []
        for corner in value:
            if not isinstance(corner, (list, tuple)) or len(corner) != 2:
                raise ValueError(f"{corner!r} is no corner: write [step, number]")
            corners.append((Whole(0).parse(corner[0]), number.parse(corner[1])))
        for before, after in pairwise(corners):
            if after[0] <= before[0]:
                raise ValueError(f"step {after[0]} does not come after step {before[0]}: corners are in order of their steps")
        return tuple(corners)

    def text(self, value: Any) -> Any:
        """Write a constant as a number."""
        return value[0][1] if len(value) == 1 else [list(corner) for corner in value]

    def json_schema(self) -> dict[str, Any]:
        """Describe both forms."""
        number = Number(self.minimum, self.maximum).json_schema()
        corner = {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0}, number], "minItems": 2, "maxItems": 2}
        return {"anyOf": [number, {"type": "array", "items": corner, "minItems": 1}]}


Coefficient = Annotated[Corners, OverSteps(maximum=LARGEST)]


@dataclass(frozen=True, slots=True)
class NumberOverSteps(Marker):
    """The same, but a number stays a number."""

    minimum: float = 0.0

    def parse(self, value: Any) -> float | Corners:
        """Accept a number, or corners whose steps increase."""
        corners = OverSteps(self.minimum, LARGEST).parse(value)
        return corners if isinstance(value, (list, tuple)) else corners[0][1]

    def text(self, value: Any) -> Any:
        """Write corners as lists."""
        return [list(corner) for corner in value] if isinstance(value, tuple) else value

    def json_schema(self) -> dict[str, Any]:
        """Describe both forms."""
        return OverSteps(self.minimum, LARGEST).json_schema()


Changing = Annotated[float | Corners, NumberOverSteps()]


def at_step(corners: float | Corners, step: int) -> float:
    """Return the coefficient of a step.

    Examples
    --------
    >>> at_step(((100, 0.0), (200, 1.0)), 150), at_step(((100, 0.0), (200, 1.0)), 900), at_step(0.5, 7)
    (0.5, 1.0, 0.5)
    """
    if not isinstance(corners, tuple):
        return corners
    steps, values = zip(*corners, strict=True)
    return float(np.interp(step, steps, values))


@dataclass(frozen=True, slots=True)
class OverDepth(Marker):
    """A number, or a list of ``[depth, number]`` with straight lines between them; depth is 0 in the first layer and 1 in the last."""

    minimum: float = 0.0
    maximum: float | None = None
    exclusive: bool = False

    def parse(self, value: Any) -> float | Depths:
        """Accept a number, or corners whose depths increase."""
        number = Number(self.minimum, self.maximum, self.exclusive)
        if not isinstance(value, (list, tuple)):
            return number.parse(value)
        if not value:
            raise ValueError("the list is empty: give a number, or corners such as [[0, 0.5], [1, 0.1]]")
        corners = []
        for corner in value:
            if not isinstance(corner, (list, tuple)) or len(corner) != 2:
                raise ValueError(f"{corner!r} is no corner: write [depth, number]")
            corners.append((Number(0.0, 1.0).parse(corner[0]), number.parse(corner[1])))
        for before, after in pairwise(corners):
            if after[0] <= before[0]:
                raise ValueError(f"depth {after[0]:g} does not come after depth {before[0]:g}: corners are in order of their depths")
        return tuple(corners)

    def text(self, value: Any) -> Any:
        """Write corners as lists."""
        return [list(corner) for corner in value] if isinstance(value, tuple) else value

    def json_schema(self) -> dict[str, Any]:
        """Describe both forms."""
        number = Number(self.minimum, self.maximum, self.exclusive).json_schema()
        corner = {"type": "array", "prefixItems": [Number(0.0, 1.0).json_schema(), number], "minItems": 2, "maxItems": 2}
        return {"anyOf": [number, {"type": "array", "items": corner, "minItems": 1}]}


Deep = Annotated[float | Depths, OverDepth(maximum=LARGEST)]
DeepPositive = Annotated[float | Depths, OverDepth(maximum=LARGEST, exclusive=True)]
DeepShare = Annotated[float | Depths, OverDepth(maximum=1.0)]


def at_depth(corners: float | Depths, depth: float) -> float:
    """Return the coefficient of a layer at a depth from 0 to 1.

    Examples
    --------
    >>> at_depth(((0.0, 1.0), (0.5, 3.0)), 0.25), at_depth(((0.0, 1.0), (0.5, 3.0)), 1.0), at_depth(0.5, 0.3)
    (2.0, 3.0, 0.5)
    """
    if not isinstance(corners, tuple):
        return corners
    places, values = zip(*corners, strict=True)
    return float(np.interp(depth, places, values))
