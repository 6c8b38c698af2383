"""Vertices and links with free attributes, as graph libraries write them, made into a wiring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Marker, Seconds, Whole
from moesim.desk.cluster_files.faults import Source
from moesim.desk.shape import marker_of
from moesim.models.topology.flatten import HEAVIEST
from moesim.models.topology.wiring import Vertex, WiredLink, Wiring, twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A vertex (one end) or a link (two ends), its attributes and its line (0 if unknown)."""

    ends: tuple[str, ...]
    data: dict[str, Any]
    line: int = 0


def _quantity(dimension: Marker | None) -> Callable[[Any], Any]:
    """Read text with a unit, or a number that is in SI units already, which is what a graph library writes."""

    def read(value: Any) -> float:
        if dimension is None:  # pragma: no cover - both aliases carry one
            raise ValueError(f"{value!r} cannot be read")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return float(dimension.parse(value))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        unit = "s" if dimension is marker_of(Seconds) else "B/s"
        return float(dimension.parse(f"{value!r} {unit}"))

    return read


def _whole(minimum: int, maximum: int) -> Callable[[Any], Any]:
    def read(value: Any) -> int:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        return Whole(minimum, maximum).parse(whole)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is not one line of text")
    return value


RATE, TIME = _quantity(marker_of(BytesPerSecond)), _quantity(marker_of(Seconds))
OF_VERTEX: dict[str, Callable[[Any], Any]] = {"kind": _text, "node": _whole(0, 2**20), "nic": _text, "rate": RATE}
OF_LINK: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "link_class": _text,
    "bandwidth": RATE,
    "rate": RATE,
    "latency": TIME,
    "lanes": _whole(1, 1024),
    "weight": _whole(1, HEAVIEST),
}


def wiring_from(source: Source, vertices: Iterable[Found], links: Iterable[Found], *, directed: bool) -> Wiring:
    """Return the wiring; attributes that moesim does not know (positions, colours) are left alone.

    Raises
    ------
    Fault
        With the line where it is known.
    """
    named: dict[str, Vertex] = {}
    for vertex in vertices:
        if vertex.ends[0] in named:
            raise source.fault(f"a second vertex {vertex.ends[0]!r}", line=vertex.line)
        try:
            _text(vertex.ends[0])
        except ValueError as error:
            raise source.fault(f"the name of a vertex: {error}", line=vertex.line) from None
        named[vertex.ends[0]] = Vertex(**_read(source, f"the vertex {vertex.ends[0]!r}", vertex, OF_VERTEX))
    wired: list[WiredLink] = []
    lines: list[int] = []
    for link in links:
        tail, head = link.ends
        for end in link.ends:
            if end not in named:
                raise source.fault(f"the link {tail} - {head} ends at {end!r}, which is no vertex", line=link.line)
        known = _read(source, f"the link {tail} - {head}", link, OF_LINK)
        try:
            wired.append(WiredLink(ends=(tail, head), both_ways=not directed, **known))
        except FieldError as error:
            raise source.fault(f"the link {tail} - {head}: {error}", line=link.line) from None
        lines.append(link.line)
    repeated = twice(wired)
    if repeated is not None:
        raise source.fault(repeated[1], line=lines[repeated[0]])
    return Wiring(source=source.name, vertices=named, links=tuple(wired))


def _read(source: Source, what: str, found: Found, known: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, read in known.items():
        if found.data.get(key) is None:
            continue
        try:
            values[key] = read(found.data[key])
        except (ValueError, TypeError) as error:
            raise source.fault(f"{what}: {key}: {error}", line=found.line) from None
    return values
