"""Field types of plug-ins: one alias gives the type checker a float, the loader a parser, the schema a description.

A plug-in author writes ``nic: BytesPerSecond = 50e9`` and is done. Nothing here coerces: ``true`` is not 1, ``"4"`` is not
4, and a quantity without a unit is refused. Validation itself is pydantic's; it is imported only when a file is read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from moesim.base.units import DIMENSIONS, format_quantity, parse_quantity

if TYPE_CHECKING:
    from pydantic_core.core_schema import CoreSchema

C = TypeVar("C", bound=type)

SECTION_CONFIG = {"extra": "forbid", "arbitrary_types_allowed": True}


def section(cls: C) -> C:
    """Mark a frozen dataclass as a mapping of the scenario file: its fields are the only keys it takes."""
    cls.__pydantic_config__ = SECTION_CONFIG  # type: ignore[attr-defined]
    return cls


class Marker(ABC):
    """What an ``Annotated`` alias carries: how to read a value, how to write it back, how to describe it."""

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """Return the value for the field, or raise ``ValueError`` with a message for the user."""

    def text(self, value: Any) -> Any:
        """Return what YAML should show for ``value``; parsing it gives ``value`` again."""
        return value

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of what ``parse`` accepts."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return self.json_schema()


BOUNDS: dict[str, tuple[float, float]] = {
    "s": (1e-15, 1e6),
    "B": (1.0, 1e18),
    "B/s": (1.0, 1e18),
    "flop/s": (1.0, 1e21),
}
"""The least and the most that a quantity may be, in SI units. No machine comes near them; within them, quotients and products of a few
quantities stay far from where floats end, so nothing that a scenario says can turn into infinity or into nothing."""


@dataclass(frozen=True, slots=True)
class Quantity(Marker):
    """A number with a unit, held in SI units; what is not 0 lies between the ``BOUNDS`` of its dimension."""

    dimension: str
    minimum: float = 0.0
    exclusive: bool = True

    def parse(self, value: Any) -> float:
        """Read ``"400 Gb/s"``; refuse a bare number other than 0, NaN, infinity and what is out of range."""
        number = parse_quantity(value, self.dimension)
        if number < self.minimum or (self.exclusive and number == self.minimum):
            bound = "more than" if self.exclusive else "at least"
            raise ValueError(f"{value!r} is out of range: it must be {bound} {format_quantity(self.minimum, self.dimension)}")
        least, most = BOUNDS[self.dimension]
        if number and not least <= number <= most:
            bound = f"at least {_plain(least, self.dimension)}" if number < least else f"at most {_plain(most, self.dimension)}"
            raise ValueError(f"{value!r} is out of range: {DIMENSIONS[self.dimension].name} must be {bound}")
        return number

    def text(self, value: float) -> Any:
        """Write the shortest text that reads back to the same float."""
        return format_quantity(value, self.dimension, exact=True)

    def json_schema(self) -> dict[str, Any]:
        """Describe the text form."""
        example = DIMENSIONS[self.dimension].example
        least, most = (_plain(bound, self.dimension) for bound in BOUNDS[self.dimension])
        return {
            "type": ["string", "integer"],
            "description": f"{DIMENSIONS[self.dimension].name} with a unit, such as '{example}'; from {least} to {most}",
            "examples": [example],
        }


def _plain(value: float, dimension: str) -> str:
    """Write a bound in the unit of the International System: ``1e+18 B/s`` says more than a million millions of megabytes."""
    return f"{value:g} {dimension}"


MOST = 2**40
"""No count of a scenario is larger: products of a few stay far from where floats end. Fields that set the size of arrays have smaller
bounds of their own."""


@dataclass(frozen=True, slots=True)
class Whole(Marker):
    """A whole number in a range."""

    minimum: int = 0
    maximum: int | None = None

    def parse(self, value: Any) -> int:
        """Accept a YAML integer only."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{value!r} is not a whole number")  # noqa: TRY004 - pydantic collects ValueError
        if value < self.minimum:
            raise ValueError(f"{value} is too small: it must be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"{value} is too large: it must be at most {self.maximum}")
        return value

    def json_schema(self) -> dict[str, Any]:
        """Describe the range."""
        schema: dict[str, Any] = {"type": "integer", "minimum": self.minimum}
        if self.maximum is not None and self.maximum < MOST:  # the bound of every count is not worth repeating at each
            schema["maximum"] = self.maximum
        return schema


@dataclass(frozen=True, slots=True)
class Number(Marker):
    """A finite number without a unit, in a range."""

    minimum: float | None = None
    maximum: float | None = None
    exclusive: bool = False

    def parse(self, value: Any) -> float:
        """Accept a YAML integer or float, not NaN and not infinite."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - pydantic collects ValueError
        try:
            number = float(value)
        except OverflowError:
            raise ValueError(f"a number of {len(str(abs(value)))} digits is too large") from None
        if not math.isfinite(number):
            raise ValueError(f"{value} is not a finite number")
        if self.minimum is not None and (number < self.minimum or (self.exclusive and number == self.minimum)):
            raise ValueError(f"{value} is too small: it must be {'more than' if self.exclusive else 'at least'} {self.minimum:g}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"{value} is too large: it must be at most {self.maximum:g}")
        return number

    def json_schema(self) -> dict[str, Any]:
        """Describe the range."""
        schema: dict[str, Any] = {"type": "number"}
        if self.minimum is not None:
            schema["exclusiveMinimum" if self.exclusive else "minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        return schema


@dataclass(frozen=True, slots=True)
class Truth(Marker):
    """``true`` or ``false`` and nothing else."""

    def parse(self, value: Any) -> bool:
        """Accept a YAML boolean only."""
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false")  # noqa: TRY004 - pydantic collects ValueError
        return value

    def json_schema(self) -> dict[str, Any]:
        """Describe a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Line(Marker):
    """One line of text that is not empty."""

    def parse(self, value: Any) -> str:
        """Accept a YAML string only."""
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not text; put it in quotes")  # noqa: TRY004 - pydantic collects ValueError
        if not value.strip():
            raise ValueError("the text is empty")
        if not value.isprintable():
            raise ValueError(f"{value!r} holds a line break or a control character; terminals and file names cannot show it")
        return value

    def json_schema(self) -> dict[str, Any]:
        """Describe a string."""
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Choice(Marker):
    """One word of a list."""

    words: tuple[str, ...]

    def parse(self, value: Any) -> str:
        """Accept one of the words; suggest the nearest otherwise."""
        from moesim.base.errors import did_you_mean

        if value not in self.words:
            raise ValueError(f"unknown choice {value!r}{did_you_mean(str(value), self.words)}")
        return str(value)

    def json_schema(self) -> dict[str, Any]:
        """Describe an enumeration."""
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class FilePath(Marker):
    """A file's path, relative to the file that names it; the loader makes it absolute."""

    def parse(self, value: Any) -> str:
        """Accept a string; the loader has already resolved it."""
        return Line().parse(value)

    def json_schema(self) -> dict[str, Any]:
        """Describe a path."""
        return {"type": "string", "description": "a path, relative to this file"}


@dataclass(frozen=True, slots=True)
class ReadFile(FilePath):
    """A file that the loader reads, so that a model never opens one: what ``reader`` makes of it goes to the field ``into``.

    The path itself is then forgotten: a resolved scenario holds the content, and means the same wherever it lies.
    """

    reader: str = ""
    into: str = ""


@dataclass(frozen=True, slots=True)
class Preset(Marker):
    """The name of a shipped description (``h100-sxm``) or a mapping that spells one out."""

    table: Callable[[], dict[str, Any]]
    cls: type

    def parse(self, value: Any) -> Any:
        """Look a name up; build a mapping."""
        from moesim.base.errors import did_you_mean

        if isinstance(value, self.cls):
            return value
        if isinstance(value, str):
            presets = self.table()
            if value not in presets:
                raise ValueError(f"unknown preset {value!r}{did_you_mean(value, presets)}")
            return presets[value]
        from pydantic import TypeAdapter

        return TypeAdapter(self.cls).validate_python(value)

    def text(self, value: Any) -> Any:
        """Write the name when the value is the preset of that name, otherwise leave the mapping to the writer."""
        name = getattr(value, "name", None)
        return name if name is not None and self.table().get(name) == value else value

    def json_schema(self) -> dict[str, Any]:
        """Describe the two forms."""
        return {"anyOf": [{"enum": sorted(self.table())}, {"type": "object"}]}


Seconds = Annotated[float, Quantity("s", exclusive=False)]
Bytes = Annotated[float, Quantity("B")]
BytesPerSecond = Annotated[float, Quantity("B/s")]
FlopsPerSecond = Annotated[float, Quantity("flop/s")]
Count = Annotated[int, Whole(1, MOST)]
CountOrZero = Annotated[int, Whole(0, MOST)]
Seed = Annotated[int, Whole(0)]
Efficiency = Annotated[float, Number(0.0, 1.0, exclusive=True)]
Positive = Annotated[float, Number(0.0, exclusive=True)]
NotNegative = Annotated[float, Number(0.0)]
Flag = Annotated[bool, Truth()]
Text = Annotated[str, Line()]
File = Annotated[str, FilePath()]
