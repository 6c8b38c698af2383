"""The plug-in slots: one frozen dataclass per plug-in, its fields are its YAML keys, its registered word is its kind.

Built-in plug-ins are imported when their slot is first used; outside ones come from the entry-point group
``moesim.plugins`` or from files named in a scenario. A new policy touches one new file and one test.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import SourceLoader
from types import ModuleType
from typing import Any, TypeVar

from moesim.base.errors import PluginError, did_you_mean
from moesim.base.fields import SECTION_CONFIG, Marker

C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place where a plug-in goes."""

    name: str
    package: str
    tag: str = "kind"
    plural: str
    null: str | None = None
    known: dict[str, type] = field(default_factory=dict)


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot(name="topology", package="moesim.models.topology", plural="topologies"),
        Slot(name="source", package="moesim.models.source", plural="sources"),
        Slot(name="gate", package="moesim.models.gate", plural="gates"),
        Slot(name="capacity", package="moesim.models.capacity", plural="capacities", tag="rule", null="dropless"),
        Slot(name="placement", package="moesim.models.placement", plural="placements"),
        Slot(name="dispatch", package="moesim.models.dispatch", plural="dispatches"),
        Slot(name="exchange", package="moesim.models.exchange", plural="exchanges"),
        Slot(name="compute", package="moesim.models.compute", plural="computes"),
        Slot(name="schedule", package="moesim.models.schedule", plural="schedules"),
        Slot(name="metric", package="moesim.measure", plural="metrics"),
    )
}
PLUGIN_MODULE = "moesim_plugin_"
"""How the names of the modules begin that plug-in files become."""
_outside: dict[str, str] = {}
"""Of every entry point that was tried, by its name and value: what went wrong, empty where nothing did."""
_asked_outside: list[bool] = []


def register(slot: str, kind: str) -> Callable[[C], C]:
    """Class decorator that puts a frozen dataclass into a slot under ``kind``.

    A class that is defined again in its own module replaces itself. One file that arrives twice, by an entry point and by ``plugins:``,
    counts once: its first class stays.

    Parameters
    ----------
    slot : str
        One of ``SLOTS``.
    kind : str
        The word users write.

    Raises
    ------
    PluginError
        If the slot does not exist, or another class already has that kind.
    """
    if slot not in SLOTS:
        raise PluginError(f"there is no slot {slot!r}{did_you_mean(slot, SLOTS)}")

    def put(cls: C) -> C:
        other = SLOTS[slot].known.get(kind)
        again = other is not None and (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
        twice = other is not None and not again and other.__qualname__ == cls.__qualname__ and _file_of(other) == _file_of(cls) != ""
        if other is not None and not again and not twice:
            raise PluginError(f"{slot} {kind!r} is already {_named(other)}; choose another name")
        cls.kind = kind  # type: ignore[attr-defined]
        cls.slot = slot  # type: ignore[attr-defined]
        cls.__pydantic_config__ = SECTION_CONFIG  # type: ignore[attr-defined]
        if not twice:
            SLOTS[slot].known[kind] = cls
        return cls

    return put


def _file_of(cls: type) -> str:
    """Return the real path of the file that defines a class, empty where there is none (a notebook)."""
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return os.path.realpath(path) if path else ""


def _named(cls: type) -> str:
    """Return what an error calls a class: its module, or the file where the module's name is made up here."""
    return f"{_file_of(cls)}:{cls.__qualname__}" if cls.__module__.startswith(PLUGIN_MODULE) else f"{cls.__module__}.{cls.__qualname__}"


def kinds(slot: str) -> dict[str, type]:
    """Return every plug-in of a slot by kind, sorted by name; those of packages that fail to load are left out."""
    importlib.import_module(SLOTS[slot].package)
    _load_entry_points()
    return dict(sorted(SLOTS[slot].known.items()))


def plugin(slot: str, kind: str) -> type:
    """Return the class of one plug-in.

    Raises
    ------
    PluginError
        If nothing of that kind is registered; the message names the nearest, and the installed packages that failed to load, for it may
        be one of theirs.
    """
    importlib.import_module(SLOTS[slot].package)
    if kind not in SLOTS[slot].known:
        _load_entry_points()
    if kind not in SLOTS[slot].known:
        raise PluginError(f"unknown {slot} {kind!r}{did_you_mean(kind, SLOTS[slot].known)}{_perhaps_broken()}")
    return SLOTS[slot].known[kind]


def import_rooms(package: str, path: Iterable[str]) -> None:
    """Import every module of a slot's package, so that a new plug-in is one new file and no line elsewhere.

    Parameters
    ----------
    package : str
        ``__name__`` of the package.
    path : iterable of str
        Its ``__path__``.
    """
    for module in sorted(pkgutil.iter_modules(path), key=lambda found: found.name):
        importlib.import_module(f"{package}.{module.name}")


def load_plugin_file(path: str) -> None:
    """Run a Python file so that its ``@register`` lines take effect; a file that is loaded and has not changed is not run again.

    Raises
    ------
    PluginError
        If the file does not exist or fails; the message holds its error.
    """
    real = os.path.realpath(path)
    # Two files of the same name in different folders are two modules.
    stem = os.path.splitext(os.path.basename(real))[0]
    name = f"{PLUGIN_MODULE}{stem}_{hashlib.sha256(real.encode(errors='surrogateescape')).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None or not isinstance(spec.loader, SourceLoader):
        raise PluginError(f"{path} is not a Python file")
    try:
        text = spec.loader.get_data(real)
    except OSError as error:
        raise PluginError(f"the plug-in file {path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    digest = hashlib.sha256(text).hexdigest()
    earlier = sys.modules.get(name)
    if earlier is not None and getattr(earlier, "__digest__", None) == digest and _still_registered(earlier):
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled from the text just read: a cached .pyc may be older than an edit within one second.
        exec(spec.loader.source_to_code(text, real), module.__dict__)  # noqa: S102 - running it is what a plug-in file is for
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if earlier is not None:
            sys.modules[name] = earlier
        if isinstance(error, PluginError):
            raise
        raise PluginError(f"the plug-in file {path} failed: {type(error).__name__}: {error}") from error
    module.__dict__["__digest__"] = digest


def _still_registered(module: ModuleType) -> bool:
    """Tell whether the slots still hold every kind that a module brought."""
    brought = [thing for thing in vars(module).values() if isinstance(thing, type) and thing.__module__ == module.__name__]
    return all(cls.kind in SLOTS[cls.slot].known for cls in brought if getattr(cls, "slot", None) in SLOTS)  # type: ignore[attr-defined]


def broken_packages() -> tuple[str, ...]:
    """Return one sentence for every installed plug-in that failed to load: which, and why."""
    _load_entry_points()
    return tuple(said for said in _outside.values() if said)


def _perhaps_broken() -> str:
    """Return a hint that an unknown kind may be one of a package that failed to load, empty where none did."""
    said = broken_packages()
    return f"; it may be one of an installed plug-in that is broken: {'; '.join(said)}" if said else ""


def _load_entry_points() -> None:
    """Load what installed packages bring; an error is kept and told when something is missing, for most runs need none of them."""
    if _asked_outside:
        return
    _asked_outside.append(True)
    from importlib.metadata import entry_points

    for point in entry_points(group="moesim.plugins"):
        said = ""
        try:
            point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code may raise anything
            of = getattr(point, "dist", None)
            package = f" of the package {of.name}" if of is not None else ""
            said = f"the plug-in {point.name!r}{package} ({point.value}) failed to load: {type(error).__name__}: {error}"
        _outside[f"{point.name} {point.value}"] = said


_INSIDE: ContextVar[frozenset[str]] = ContextVar("slots being described", default=frozenset())


@dataclass(frozen=True, slots=True)
class PluginOf(Marker):
    """The field of a scenario that holds a plug-in of one slot; ``default`` is the kind of a mapping that names none."""

    slot: str
    default: str | None = None

    def parse(self, value: Any) -> Any:
        """Build a plug-in from ``{kind: ..., key: ...}`` or from the bare kind."""
        slot = SLOTS[self.slot]
        if getattr(value, "slot", None) == self.slot:
            return value
        if value is None and slot.null is not None:
            value = {slot.tag: slot.null}
        if isinstance(value, str):
            value = {slot.tag: value}
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping with {slot.tag!r}, or one of {', '.join(kinds(self.slot))}")  # noqa: TRY004
        if slot.tag not in value and self.default is not None:
            value = {slot.tag: self.default, **value}
        if slot.tag not in value:
            raise ValueError(f"missing key {slot.tag!r} (known: {', '.join(kinds(self.slot))})")
        from pydantic_core import PydanticCustomError

        word = value[slot.tag]
        try:
            cls = plugin(self.slot, word) if isinstance(word, str) else None
        except PluginError:
            cls = None
        if cls is None:
            raise PydanticCustomError(
                "unknown_kind",
                "{message}",  # the loader puts the caret on the tag
                {"message": f"unknown {slot.tag} {word!r}{did_you_mean(str(word), kinds(self.slot))}{_perhaps_broken()}", "tag": slot.tag},
            )
        return build(cls, {key: item for key, item in value.items() if key != slot.tag})

    def json_schema(self) -> dict[str, Any]:
        """Describe every plug-in of the slot as one alternative."""
        from pydantic import TypeAdapter

        slot = SLOTS[self.slot]
        forms: list[dict[str, Any]] = [{"enum": [*kinds(self.slot), *([None] if slot.null else [])]}]
        if self.slot in (inside := _INSIDE.get()):
            # A plug-in that holds another of its own slot would go on for ever: inside it, the names are all that is said.
            return {"anyOf": [*forms, {"type": "object", "properties": {slot.tag: {"enum": list(kinds(self.slot))}}}]}
        for kind, cls in kinds(self.slot).items():
            before = _INSIDE.set(inside | {self.slot})
            try:
                schema = dict(TypeAdapter(cls).json_schema(mode="validation"))
            finally:
                _INSIDE.reset(before)
            schema["properties"] = {slot.tag: {"const": kind}} | schema.get("properties", {})
            schema["required"] = [*([] if kind == self.default else [slot.tag]), *schema.get("required", [])]
            schema["additionalProperties"] = False
            forms.append(schema)
        return {"anyOf": forms}


def build(cls: type, data: Mapping[str, Any]) -> Any:
    """Build a section or plug-in dataclass from plain data.

    Raises
    ------
    pydantic.ValidationError
        With one entry per wrong field; :mod:`moesim.desk` turns it into problems with places.
    """
    return _reader(cls).validate_python(dict(data))


@cache
def _reader(cls: type) -> Any:
    """Return pydantic's reader of a class; making one takes far longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
