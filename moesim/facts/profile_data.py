"""Profiles as plain data: what stands in a YAML file, and in a resolved scenario."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from moesim.base.errors import did_you_mean
from moesim.base.fields import Marker
from moesim.facts.profile import Parameter, Profile, Section

SCHEMA = 1
"""Of the file; one more when a key changes its meaning."""

ALL = "all"
"""What a file calls the scatter of all rows, which a section keeps under the empty name."""


def plain_profile(profile: Profile) -> dict[str, Any]:
    """Return a profile as dictionaries, lists, numbers and text; :func:`profile_of` gives an equal profile back."""
    return {
        "schema": SCHEMA,
        "name": profile.name,
        "gpu": profile.gpu,
        "made": profile.made,
        "note": profile.note,
        "sections": {name: _plain_section(section) for name, section in profile.sections.items()},
    }


def _plain_section(section: Section) -> dict[str, Any]:
    return {
        "model": section.model,
        "source": section.source,
        "carried_from": section.carried_from,
        "rows": section.rows,
        "fitted_range": {name: [float(least), float(most)] for name, (least, most) in section.fitted_range.items()},
        "scatter": {name or ALL: float(value) for name, value in section.scatter.items()},
        "parameters": [_plain_parameter(parameter) for parameter in section.parameters],
        "scale": section.scale,
        "covariance": None if section.covariance is None else [list(row) for row in section.covariance],
    }


def _plain_parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "value": float(parameter.value),
        "unit": parameter.unit,
        "basis": parameter.basis,
        "error": parameter.error,
        "source": parameter.source,
        "date": parameter.date,
    }


def profile_of(data: Any) -> Profile:
    """Return the profile that plain data describes.

    Raises
    ------
    ValueError
        If a key is missing, unknown or of the wrong type; the message names it.
    """
    top = _keys(data, "a profile", needed=("schema", "name", "gpu", "made", "sections"), more=("note",))
    if top["schema"] != SCHEMA:
        raise ValueError(f"schema {top['schema']!r} is not the one that this version reads ({SCHEMA})")
    sections = _mapping(top["sections"], "sections")
    return Profile(
        name=_text(top["name"], "name"),
        gpu=_text(top["gpu"], "gpu"),
        made=_text(top["made"], "made"),
        note=_text(top.get("note", ""), "note"),
        sections={str(name): _section(item, f"sections.{name}") for name, item in sections.items()},
    )


def _section(data: Any, where: str) -> Section:
    found = _keys(
        data,
        where,
        needed=("model", "parameters"),
        more=("source", "rows", "fitted_range", "scatter", "scale", "covariance", "carried_from"),
    )
    ranges = _mapping(found.get("fitted_range", {}), f"{where}.fitted_range")
    scatter = _mapping(found.get("scatter", {}), f"{where}.scatter")
    rows = found.get("rows", 0)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise ValueError(f"{where}.rows: {rows!r} is not a whole number of at least 0")
    covariance = found.get("covariance")
    return Section(
        model=_text(found["model"], f"{where}.model"),
        source=_text(found.get("source", ""), f"{where}.source"),
        carried_from=_text(found.get("carried_from", ""), f"{where}.carried_from"),
        rows=rows,
        fitted_range={str(name): _pair(item, f"{where}.fitted_range.{name}") for name, item in ranges.items()},
        scatter={"" if name == ALL else str(name): _number(item, f"{where}.scatter.{name}") for name, item in scatter.items()},
        parameters=tuple(
            _parameter(item, f"{where}.parameters.{index}") for index, item in enumerate(_list(found["parameters"], f"{where}.parameters"))
        ),
        scale=_text(found.get("scale", "log"), f"{where}.scale"),
        covariance=None if covariance is None else _matrix(covariance, f"{where}.covariance"),
    )


def _parameter(data: Any, where: str) -> Parameter:
    found = _keys(data, where, needed=("name", "value", "basis"), more=("unit", "error", "source", "date"))
    error = found.get("error")
    return Parameter(
        name=_text(found["name"], f"{where}.name"),
        value=_number(found["value"], f"{where}.value"),
        unit=_text(found.get("unit", ""), f"{where}.unit"),
        basis=_text(found["basis"], f"{where}.basis"),
        error=None if error is None else _number(error, f"{where}.error"),
        source=_text(found.get("source", ""), f"{where}.source"),
        date=_text(found.get("date", ""), f"{where}.date"),
    )


def _keys(data: Any, where: str, *, needed: Sequence[str], more: Sequence[str]) -> Mapping[str, Any]:
    found = _mapping(data, where)
    known = (*needed, *more)
    odd = next((key for key in found if key not in known), None)
    if odd is not None:
        raise ValueError(f"{where}: unknown key {odd!r}{did_you_mean(str(odd), known)}")
    missing = [key for key in needed if key not in found]
    if missing:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing")
    return found


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected keys and values, not {_shown(data)}")  # noqa: TRY004 - pydantic collects ValueError
    return data


def _list(data: Any, where: str) -> Sequence[Any]:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where}: expected a list, not {_shown(data)}")  # noqa: TRY004 - pydantic collects ValueError
    return data


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise ValueError(f"{where}: {_shown(data)} is not text; put it in quotes")  # noqa: TRY004 - pydantic collects ValueError
    return data


def _number(data: Any, where: str) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float)) or not math.isfinite(data):
        raise ValueError(f"{where}: {_shown(data)} is not a finite number")
    return float(data)


def _pair(data: Any, where: str) -> tuple[float, float]:
    items = _list(data, where)
    if len(items) != 2:
        raise ValueError(f"{where}: expected two numbers, the least and the most, not {_shown(data)}")
    return _number(items[0], where), _number(items[1], where)


def _matrix(data: Any, where: str) -> tuple[tuple[float, ...], ...]:
    rows = tuple(tuple(_number(item, where) for item in _list(row, where)) for row in _list(data, where))
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{where}: the rows differ in length")
    return rows


@dataclass(frozen=True, slots=True)
class ProfileContent(Marker):
    """What a profile's file holds, in a scenario."""

    def parse(self, value: Any) -> Profile:
        """Read the mapping that stands in a resolved scenario."""
        return value if isinstance(value, Profile) else profile_of(value)

    def text(self, value: Profile) -> dict[str, Any]:
        """Write the mapping."""
        return plain_profile(value)

    def json_schema(self) -> dict[str, Any]:
        """Describe a mapping."""
        return {"type": "object", "description": "the content of a profile's file, as 'moesim calibrate' writes it"}


ProfileField = Annotated[Profile, ProfileContent()]
"""A field of a plug-in that holds what a profile's file says; see :mod:`moesim.models.fitted` for the field that names the file."""


def only(profile: Profile, prefix: str) -> Profile:
    """Return a profile with those sections alone whose names begin with ``prefix``; of several, ``|`` stands between them."""
    wanted = tuple(prefix.split("|"))
    return replace(profile, sections={name: section for name, section in profile.sections.items() if name.startswith(wanted)})
