from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from example_result import SCENARIO, example
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import PluginError, ResultError, ScenarioError, UsageError
from moesim.base.registry import SLOTS, kinds
from moesim.cli import main
from moesim.desk import folder as places
from moesim.desk import result_files
from moesim.desk.columns import COLUMNS, FILES
from moesim.desk.report.page import page
from moesim.desk.result_files import NAMES, load, pack, save, unpack
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.tables import describe, from_csv, to_csv, unit_of
from moesim.facts.record import Result, Table

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "results.md"


@pytest.fixture(scope="module")
def result() -> Result:
    return example()


@pytest.fixture
def folder(result: Result, tmp_path: Path) -> Path:
    save(result, tmp_path / "out", report=False)
    return tmp_path / "out"


def same(one: Result, other: Result) -> None:
    """Compare bit for bit: equal floats, NaN included, have equal bytes."""
    assert one.scenario == other.scenario
    assert (one.metrics, one.warnings, one.assumptions, one.facts, one.meta) == (
        other.metrics,
        other.warnings,
        other.assumptions,
        other.facts,
        other.meta,
    )
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        assert list(table.columns) == list(other.tables[name].columns)
        assert dict(table.units) == dict(other.tables[name].units)
        for column, values in table.columns.items():
            back = other.tables[name][column]
            assert values.dtype.kind == back.dtype.kind, (name, column)
            assert values.tolist() == back.tolist() if values.dtype.kind == "U" else values.tobytes() == back.tobytes(), (name, column)


def test_l13_a_result_reads_back_equal(result: Result, folder: Path) -> None:
    same(result, load(folder))


def test_l13_a_result_reads_back_equal_without_pyarrow(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "_parquet", lambda: None)
    save(result, tmp_path, report=False)
    assert (tmp_path / "spans.csv.gz").is_file()
    assert not (tmp_path / "spans.parquet").exists()
    same(result, load(tmp_path))


PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path

from moesim.base.fields import File
from moesim.base.registry import register
from moesim.models.placement.contiguous import Contiguous

Path(__file__).with_name("it ran").touch()


@register("placement", "only_in_this_folder")
@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A placement of somebody else."""

    table: File
    depth: int = 1

    def begin(self, setting):
        return Contiguous().begin(setting)
'''


def test_reading_a_folder_runs_no_code_of_it(result: Result, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "t.csv").touch()
    placement = "policy.placement={kind: only_in_this_folder, table: t.csv, depth: 3}"
    variant = "compare={other: {placement: {depth: 4}}}"
    text = SCENARIO + "plugins: [policy.py]\n"
    scenario = read_scenario(text, file="f", folder=tmp_path, overrides=[placement, variant])
    assert scenario.policy.placement.depth == 3
    first = dataclasses.replace(result, scenario=scenario)
    save(first, tmp_path / "out", report=True)
    page = (tmp_path / "out" / "report.html").read_bytes()
    same(first, load(tmp_path / "out"))  # in a process that knows the plug-in, it is itself
    # Another process, on another machine: the kind is unknown, and the file may be there (and hostile) or not.
    del SLOTS["placement"].known["only_in_this_folder"]
    for name in [name for name in sys.modules if name.startswith("moesim_plugin_policy")]:
        del sys.modules[name]
    (tmp_path / "it ran").unlink()
    again = unpack(tmp_path / "out")
    kept = again.result.scenario.policy.placement
    assert (kept.slot, kept.kind, kept.data) == ("placement", "only_in_this_folder", {"table": "../t.csv", "depth": 3})
    assert again.result.scenario.compare["other"].placement.data["depth"] == 4
    assert again.result.scenario.plugins == (str(tmp_path / "policy.py"),)
    assert CliRunner().invoke(main, ["report", str(tmp_path / "out")]).exit_code == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    assert not (tmp_path / "it ran").exists()
    assert "only_in_this_folder" not in kinds("placement")
    # What was kept is written as it was read, and refuses to run by name.
    assert pack(again.result, tmp_path / "out").scenario_text == again.scenario_text
    with pytest.raises(PluginError, match="the code of placement 'only_in_this_folder' is not loaded"):
        kept.begin(None)
    (tmp_path / "policy.py").unlink()
    assert load(tmp_path / "out").scenario == again.result.scenario


@pytest.mark.parametrize(
    "key", ["cluster", "routing", "exchange", "compute", "schedule", "policy.gate", "policy.capacity", "policy.dispatch"]
)
def test_a_part_of_any_slot_may_be_unknown(result: Result, key: str, tmp_path: Path) -> None:
    save(result, tmp_path, report=False)
    path = tmp_path / "scenario.yaml"
    tag = "rule" if key == "policy.capacity" else "kind"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    holder = tree["policy"] if "." in key else tree
    holder[key.rsplit(".", maxsplit=1)[-1]] = {tag: "of_another_machine", "window": 3, "parts": [{"a": 1}]}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    parcel = unpack(tmp_path)
    found = parcel.result.scenario
    for step in key.split("."):
        found = getattr(found, step)
    assert (found.kind, found.data) == ("of_another_machine", {"window": 3, "parts": [{"a": 1}]})
    assert "of_another_machine" in page(parcel.result, summary=parcel.summary, scenario_text="")
    # A scenario that shall run has no unknown parts.
    with pytest.raises(ScenarioError, match=f"unknown {tag} 'of_another_machine'"):
        load_scenario(path)


CELLS = {
    "f": st.floats(),
    "i": st.integers(-(2**63), 2**63 - 1),
    "U": st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00\r"), max_size=8),
    "b": st.booleans(),
}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_l13_every_table_reads_back_equal(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 6))
    columns = {}
    for at, kind in enumerate(data.draw(st.lists(st.sampled_from("fiUb"), min_size=1, max_size=4))):
        cells = data.draw(st.lists(CELLS[kind], min_size=rows, max_size=rows))
        columns[f'c{at},"{kind}'] = np.array(cells, dtype={"f": np.float64, "i": np.int64, "U": str, "b": np.bool_}[kind])
    table = Table(columns=columns)
    back = from_csv(to_csv(table), describe(table), where="x.csv")
    for name, column in columns.items():
        assert column.dtype.kind == back[name].dtype.kind
        if column.dtype.kind == "f":
            # NaNs have many bit patterns and text has one; all other floats must agree to the sign of zero.
            known = ~np.isnan(column)
            assert (np.isnan(back[name]) == ~known).all()
            assert column[known].tobytes() == back[name][known].tobytes()
        else:
            assert column.tolist() == back[name].tolist()


def test_l8_equal_results_give_equal_bytes_except_meta(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path / "a", trace_steps=1)
    save(dataclasses.replace(result, meta={"wall_s": 99.0}), tmp_path / "b", trace_steps=1)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert {"report.html", "trace.json.gz", "spans.parquet", "scenario.yaml", "graph.json"} < set(names)
    differ = [name for name in names if (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()]
    assert differ == ["meta.json"]


def test_summary_keeps_the_contract_with_scripts(result: Result, folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["schema"], summary["name"], summary["seed"]) == (1, "hand-made example, EP 16", 1)
    for metric in summary["metrics"].values():
        assert list(metric) == ["value", "unit", "low", "high", "n", "basis"]
    assert summary["metrics"]["step_time"]["value"] == result.metrics["step_time"].value
    assert summary["metrics"]["fully_dropped_tokens"]["value"] is None
    assert summary["columns"]["links"]["bandwidth_Bps"] == {"unit": "B/s", "type": "number"}
    assert "graph" not in summary["facts"]


def test_numbers_that_json_lacks_become_null(result: Result, tmp_path: Path) -> None:
    odd = dataclasses.replace(result.metrics["step_time"], value=float("nan"), low=float("-inf"))
    parcel = pack(dataclasses.replace(result, metrics={"step_time": odd}, facts={"gpus": np.int64(4)}), tmp_path)
    summary = json.loads(parcel.summary_text)
    assert (summary["metrics"]["step_time"]["value"], summary["metrics"]["step_time"]["low"], summary["facts"]["gpus"]) == (None, None, 4)


def test_a_later_run_leaves_nothing_of_an_earlier_one(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path, trace_steps=1)
    assert (tmp_path / "rebalances.csv").is_file()
    tables = {name: table for name, table in result.tables.items() if name not in {"spans", "rebalances"}}
    save(dataclasses.replace(result, tables=tables), tmp_path, report=False)
    assert not {"report.html", "trace.json.gz", "spans.parquet", "rebalances.csv"} & {path.name for path in tmp_path.iterdir()}
    assert not {"spans", "rebalances"} & set(load(tmp_path).tables)


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")]
)
def test_a_failing_disk_is_named_and_complete_files_stay(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "links.csv":
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(places.os, "replace", replace)
    with pytest.raises(ResultError, match=r"cannot write .*links\.csv") as caught:
        save(result, tmp_path, report=False)
    assert says in str(caught.value)
    there = {path.name for path in tmp_path.iterdir()}
    # Files go out in the order of the tables, so those before links.csv are whole and nothing is half-written.
    assert {"steps.csv", "layers.csv", "gpus.csv", "meta.json"} <= there
    assert not any(name.endswith(".part") for name in there)
    monkeypatch.undo()
    places.protect(tmp_path, NAMES)
    save(result, tmp_path, report=False)
    same(result, load(tmp_path))


def test_a_file_in_the_way_is_named(result: Result, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ResultError, match=r"cannot make the folder .*taken.* choose another folder with -o"):
            save(result, path, report=False)
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_users_own_scenario_is_not_overwritten(result: Result, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text("# mine")
    with pytest.raises(UsageError, match=r"scenario\.yaml"):
        places.protect(tmp_path, NAMES)
    (tmp_path / "scenario.yaml").rename(tmp_path / "my.yaml")
    places.protect(tmp_path, NAMES)
    places.protect(tmp_path / "not there yet", NAMES)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def new_schema(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2, "version": "9.1"}))


def without_metrics(path: Path) -> None:
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "metrics"}))


def one_digit(path: Path) -> None:
    path.write_text(path.read_text().replace("nvlink-out:0", "nvlink-out:1", 1))


def a_word(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[2] = "many" + lines[2][lines[2].index(",") :]
    path.write_text("\n".join(lines) + "\n")


def other_column(path: Path) -> None:
    path.write_text(path.read_text().replace("step_time_s", "step_tine_s", 1))


def binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("summary.json", Path.unlink, "summary.json is missing"),
        ("summary.json", cut, r"summary\.json:\d+:\d+: damaged"),
        ("summary.json", new_schema, r"schema 2, this moesim reads schema 1; use moesim 9\.1"),
        ("summary.json", without_metrics, "damaged: KeyError: 'metrics'"),
        ("steps.csv", Path.unlink, r"steps\.csv is missing"),
        ("timeline.csv", cut, r"timeline\.csv: line 641: "),
        ("links.csv", one_digit, r"links\.csv does not belong to .*summary\.json"),
        ("steps.csv", a_word, r"steps\.csv: column step: line 3: 'many' is not a whole number"),
        ("steps.csv", other_column, r"unknown column 'step_tine_s'; did you mean 'step_time_s'"),
        ("gpus.csv", binary, r"gpus\.csv is damaged: byte 0 is not UTF-8"),
        ("graph.json", cut, r"graph\.json:1:\d+: damaged"),
        ("spans.parquet", cut, r"spans\.parquet is damaged"),
        ("spans.parquet", Path.unlink, r"spans\.parquet is missing"),
        ("meta.json", Path.unlink, r"meta\.json is missing"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder: Path, name: str, damage: object, says: str) -> None:
    damage(folder / name)  # type: ignore[operator]
    with pytest.raises(ResultError, match=says):
        load(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="is not there"):
        unpack(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="is a file"):
        unpack(tmp_path / "file")


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "_parquet", lambda: None)
    with pytest.raises(ResultError, match=r"moesim\[parquet\]"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("DeepSeek-V2 lite, EP 16", "deepseek-v2-lite-ep-16"), ("../../etc", "etc"), ("Café 2 × 8", "cafe-2-8"), ("日本", "run")],
)
def test_folder_names_are_plain(name: str, expected: str) -> None:
    assert places.slug(name) == expected


def documented() -> dict[str, dict[str, str]]:
    """Return {table: {column: unit}} of the manual."""
    text = DOCS.read_text(encoding="utf-8")
    tables = {}
    for title, body in re.findall(r"^### (\w+)\.csv\n(.*?)(?=^### |\Z)", text, flags=re.MULTILINE | re.DOTALL):
        tables[title] = {column: unit for column, unit, _ in re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", body, flags=re.MULTILINE)}
    return tables


def test_the_manual_describes_every_column_of_every_file(folder: Path) -> None:
    manual = documented()
    files = {path.stem: path.read_text().splitlines()[0].split(",") for path in folder.glob("*.csv")}
    assert {name: list(columns) for name, columns in manual.items()} == files
    for name, columns in manual.items():
        assert list(columns) == list(COLUMNS[name])
        assert FILES[name] in DOCS.read_text(encoding="utf-8")
        for column, unit in columns.items():
            assert unit.replace("–", "") == unit_of(column), (name, column)
            assert COLUMNS[name][column] in DOCS.read_text(encoding="utf-8")


def test_the_manual_names_every_file() -> None:
    text = DOCS.read_text(encoding="utf-8")
    missing = [name for name in sorted(NAMES) if f"`{name}`" not in text and f"### {name}" not in text]
    assert missing == []


def test_results_of_another_command_are_not_overwritten(result: Result, tmp_path: Path) -> None:
    from moesim.desk import compare_files, sweep_files

    save(result, tmp_path / "run", report=False)
    # An interrupted sweep: only its first file and one cell; overwriting them would keep it from going on.
    (tmp_path / "sweep" / "cells").mkdir(parents=True)
    (tmp_path / "sweep" / "meta.json").write_text('{"study": "sweep"}')
    (tmp_path / "compare").mkdir()
    for name in ("meta.json", "comparison.json"):
        (tmp_path / "compare" / name).write_text("{}")
    kinds = {"run": NAMES, "sweep": sweep_files.NAMES, "compare": compare_files.NAMES}
    for there in kinds:
        for command, names in kinds.items():
            if command == there:
                places.protect(tmp_path / there, names)
                continue
            with pytest.raises(UsageError, match=rf"holds results of another command \(moesim {there}\); choose another folder with -o"):
                places.protect(tmp_path / there, names)
