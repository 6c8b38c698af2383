from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from moesim.base import fields, registry
from moesim.base.errors import PluginError
from moesim.base.registry import SLOTS, PluginOf, build, kinds, load_plugin_file, plugin, register

PLUGIN = '''
from dataclasses import dataclass
from moesim.base.fields import Count
from moesim.base.registry import register

@register("gate", "{kind}")
@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A gate of somebody else."""

    window: Count = 3
'''


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Forget what a test registers."""
    for slot in ("gate", "capacity"):
        kinds(slot)
    before = {name: dict(slot.known) for name, slot in SLOTS.items()}
    modules = set(sys.modules)
    yield
    for name, slot in SLOTS.items():
        slot.known.clear()
        slot.known.update(before[name])
    for name in set(sys.modules) - modules:
        if name.startswith("moesim_plugin_"):
            del sys.modules[name]


def own(kind: str = "own_gate", slot: str = "gate") -> type:
    @register(slot, kind)
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Own:
        """A gate of a test."""

        window: fields.Count = 3
        decay: fields.Efficiency = 0.5

    return Own


def test_registered_class_is_found_and_knows_its_name() -> None:
    cls = own()
    assert plugin("gate", "own_gate") is cls
    assert kinds("gate")["own_gate"] is cls
    assert (cls.kind, cls.slot) == ("own_gate", "gate")


def test_kinds_are_sorted() -> None:
    own("zzz_gate")
    own("aaa_gate").__qualname__ = "Other"
    assert list(kinds("gate")) == sorted(kinds("gate"))


def test_unknown_slot_is_refused_with_a_hint() -> None:
    with pytest.raises(PluginError, match="there is no slot 'gates'; did you mean 'gate'"):
        register("gates", "own")


def test_unknown_kind_is_refused_with_a_hint() -> None:
    own("sinkhorn_of_a_test")
    with pytest.raises(PluginError, match="unknown gate 'sinkhorn_of_test'; did you mean 'sinkhorn_of_a_test'"):
        plugin("gate", "sinkhorn_of_test")


def test_kind_cannot_be_taken_twice() -> None:
    own("taken")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Thief:
        """Another class."""

    with pytest.raises(PluginError, match=r"gate 'taken' is already .*own\.<locals>\.Own; choose another name"):
        register("gate", "taken")(Thief)


def test_same_class_may_come_again() -> None:
    # A notebook cell or a reloaded module defines the class anew; the newest counts.
    first, second = own("again"), own("again")
    assert first is not second
    assert plugin("gate", "again") is second


def test_plugin_file_registers(tmp_path: Path) -> None:
    file = tmp_path / "policy.py"
    file.write_text(PLUGIN.format(kind="from_a_file"), encoding="utf-8")
    load_plugin_file(str(file))
    assert plugin("gate", "from_a_file")().window == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("from moesim.base.registry import register\nregister('gates', 'x')", "there is no slot 'gates'"),
    ],
)
def test_error_inside_a_plugin_file_is_a_message_not_a_traceback(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken_policy.py"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PluginError, match=message):
        load_plugin_file(str(file))
    assert not [name for name in sys.modules if name.startswith("moesim_plugin_broken_policy")]


def test_missing_plugin_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere\.py"):
        load_plugin_file(str(tmp_path / "nowhere.py"))
    with pytest.raises(PluginError, match="is not a Python file"):
        load_plugin_file(str(tmp_path / "notes.txt"))


class Point:
    """An entry point, as importlib.metadata gives it."""

    name = "theirs"
    value = "their_package:policy"

    def __init__(self, load: Any) -> None:
        self.load = load


def entry_points_are(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    asked: list[str] = []

    def entry_points(*, group: str) -> tuple[Point, ...]:
        asked.append(group)
        return points

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(registry, "_asked_outside", [])
    monkeypatch.setattr(registry, "_outside", {})


def test_installed_package_brings_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points_are(monkeypatch, Point(lambda: own("from_a_package")))
    assert plugin("gate", "from_a_package").kind == "from_a_package"


def no_torch() -> None:
    raise ImportError("no torch here")


def test_installed_package_that_fails_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points_are(monkeypatch, Point(no_torch), Point(lambda: own("from_a_package")))
    assert "as_given" in kinds("gate")
    assert plugin("gate", "from_a_package").kind == "from_a_package"


@pytest.mark.parametrize("error", [ImportError("no torch here"), SystemExit("no torch here")])
def test_cause_is_told_whenever_an_unknown_kind_is_asked_for(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load() -> None:
        raise error

    point = Point(load)
    point.dist = type("Distribution", (), {"name": "their-package"})
    entry_points_are(monkeypatch, point)
    cause = rf"'theirs' of the package their-package \(their_package:policy\) failed to load: {type(error).__name__}: no torch here"
    for _ in range(2):  # the second time, too: it is loaded once, and its error is kept
        with pytest.raises(PluginError, match=f"unknown gate 'unheard_of'.*{cause}"):
            plugin("gate", "unheard_of")
        with pytest.raises(ValueError, match=f"unknown kind 'unheard_of'.*{cause}"):
            PluginOf("gate").parse("unheard_of")
    assert len(registry.broken_packages()) == 1


def test_two_plugin_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "policy.py").write_text(PLUGIN.format(kind=f"of_{folder}"), encoding="utf-8")
        load_plugin_file(str(tmp_path / folder / "policy.py"))
    one, two = plugin("gate", "of_one"), plugin("gate", "of_two")
    assert one.__module__ != two.__module__
    assert [sys.modules[cls.__module__].Own for cls in (one, two)] == [one, two]
    # And so the same kind in both is a conflict, which names both files, rather than a silent replacement.
    (tmp_path / "two" / "policy.py").write_text(PLUGIN.format(kind="of_one"), encoding="utf-8")
    with pytest.raises(PluginError, match=r"gate 'of_one' is already .*one/policy\.py:Own; choose another name"):
        load_plugin_file(str(tmp_path / "two" / "policy.py"))
    assert plugin("gate", "of_one") is one


def test_plugin_file_is_run_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "policy.py"
    file.write_text(PLUGIN.format(kind="from_a_file"), encoding="utf-8")
    load_plugin_file(str(file))
    first = plugin("gate", "from_a_file")
    monkeypatch.chdir(tmp_path)
    load_plugin_file("policy.py")
    (tmp_path / "link.py").symlink_to(file)
    load_plugin_file("link.py")
    assert plugin("gate", "from_a_file") is first
    # Same length, same second: what counts is the text.
    file.write_text(PLUGIN.format(kind="from_a_file").replace("= 3", "= 4"), encoding="utf-8")
    load_plugin_file(str(file))
    assert plugin("gate", "from_a_file")().window == 4
    # Broken now: the error is told, and what was loaded stays.
    file.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load_plugin_file(str(file))
    assert plugin("gate", "from_a_file")().window == 4


def test_plugin_file_whose_kinds_were_forgotten_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "policy.py"
    file.write_text(PLUGIN.format(kind="from_a_file"), encoding="utf-8")
    load_plugin_file(str(file))
    del SLOTS["gate"].known["from_a_file"]
    load_plugin_file(str(file))
    assert plugin("gate", "from_a_file")().window == 3


@pytest.mark.parametrize("package_first", [True, False])
def test_plugin_that_arrives_by_package_and_by_file_counts_once(
    package_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "their_policy_of_a_test.py"
    file.write_text(PLUGIN.format(kind="both_ways"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_policy_of_a_test", raising=False)
    entry_points_are(monkeypatch, Point(lambda: importlib.import_module("their_policy_of_a_test")))
    ways = [lambda: kinds("gate"), lambda: load_plugin_file(str(file))]
    found = []
    for way in ways if package_first else reversed(ways):
        way()
        found.append(SLOTS["gate"].known["both_ways"])
    assert found[0] is found[1]
    assert registry.broken_packages() == ()


def test_field_of_a_slot_reads_mapping_word_and_instance() -> None:
    cls = own("mine")
    field = PluginOf("gate")
    assert field.parse({"kind": "mine", "window": 5}) == cls(window=5)
    assert field.parse("mine") == cls()
    instance = cls(window=9)
    assert field.parse(instance) is instance


def test_slots_may_have_another_tag_and_a_meaning_of_null() -> None:
    # capacity: {rule: megatron}, and null means without a limit.
    own("dropless_of_a_test", slot="capacity").__qualname__ = "Rule"
    assert PluginOf("capacity").parse({"rule": "dropless_of_a_test"}).window == 3
    with pytest.raises(ValueError, match="missing key 'rule'"):
        PluginOf("capacity").parse({"kind": "dropless_of_a_test"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mien", "unknown kind 'mien'; did you mean 'mine'"),
        ({"kind": ["mine"]}, "unknown kind"),
        ({"window": 3}, "missing key 'kind'"),
        (5, "expected a mapping with 'kind'"),
        (None, "expected a mapping with 'kind'"),
    ],
)
def test_field_of_a_slot_refuses(value: Any, message: str) -> None:
    own("mine")
    with pytest.raises(ValueError, match=message):
        PluginOf("gate").parse(value)


def test_wrong_keys_and_values_of_a_plugin_are_all_reported() -> None:
    cls = own("mine")
    with pytest.raises(ValidationError) as caught:
        build(cls, {"window": 0, "decay": "0.5", "windo": 3})
    assert sorted(error["loc"][-1] for error in caught.value.errors()) == ["decay", "windo", "window"]


def test_schema_offers_every_kind_with_its_keys() -> None:
    own("mine")
    forms = PluginOf("gate").json_schema()["anyOf"]
    assert "mine" in forms[0]["enum"]
    mine = next(form for form in forms[1:] if form["properties"]["kind"]["const"] == "mine")
    assert set(mine["properties"]) == {"kind", "window", "decay"}
    assert (mine["required"], mine["additionalProperties"]) == (["kind"], False)
    assert None in PluginOf("capacity").json_schema()["anyOf"][0]["enum"]
