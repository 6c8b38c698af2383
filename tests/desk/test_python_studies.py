"""Studies from Python: the same answers as the commands, tables for pandas, a view for notebooks, and files only when asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from scenario_texts import SMALL

import moesim
from moesim.base.errors import UsageError
from moesim.base.fragment import MOST, fragment
from moesim.base.frames import frame
from moesim.cli import main
from moesim.facts.record import Table

QUICK = ("steps=2", "warmup=0", "workload.tokens_per_gpu=64")
AXIS = "policy.capacity.factor=1.0,1.5"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def studies(file):
    """One of each; where they run, no file is left."""
    before = sorted(file.parent.iterdir())
    made = {
        "compare": moesim.compare(file, QUICK, ["<i>&:policy.placement=round_robin"], replicates=2),
        "sweep": moesim.sweep(file, [*QUICK, AXIS]),
        "plan": moesim.plan(file, [*QUICK, "parallel.ep=4,8"], targets=["step_time <= 10 s"], prices=["h100-sxm=2"]),
        "sensitivity": moesim.sensitivity(file, [*QUICK, "cluster.nic=30 GB/s..50 GB/s"]),
        "why": moesim.why(file, QUICK),
        "memory": moesim.memory(file, QUICK, limit="1 GB"),
    }
    assert sorted(file.parent.iterdir()) == before
    return made


NAMES = ("compare", "sweep", "plan", "sensitivity", "why", "memory")
ASKED = {
    "compare": (*QUICK, "--variant", "<i>&:policy.placement=round_robin", "--replicates", "2", "--executor", "inline"),
    "sweep": (*QUICK, AXIS, "--executor", "inline"),
    "plan": (*QUICK, "parallel.ep=4,8", "--target", "step_time <= 10 s", "--price", "h100-sxm=2", "--executor", "inline"),
    "sensitivity": (*QUICK, "cluster.nic=30 GB/s..50 GB/s", "--executor", "inline"),
    "why": QUICK,
    "memory": (*QUICK, "--limit", "1 GB"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_what_its_command_says_and_saves_what_it_writes(name, studies, file, tmp_path):
    theirs, mine = tmp_path / "command", tmp_path / "python"
    done = CliRunner().invoke(main, [name, str(file), *ASKED[name], "-o", str(theirs), "--format", "json", "--quiet"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    if name == "sweep":  # pictures and digests are of the files, which are not there yet
        told |= {"pictures": [], "files": {}}
    assert told == json.loads(json.dumps(studies[name].content))
    studies[name].save(mine)
    written = {path.relative_to(mine): path for path in mine.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(theirs): path
        for path in theirs.rglob("*")
        if path.is_file() and (path.parent.name != "cells" or name == "compare")  # whose page is drawn from the runs
    }
    assert written.keys() == expected.keys()
    for path, place in written.items():
        if path.name != "meta.json":
            assert place.read_bytes() == expected[path].read_bytes(), path
    assert (mine / "report.html").read_text(encoding="utf-8") == studies[name].page() or name == "sweep"


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_the_answer_and_a_table(name, studies):
    study = studies[name]
    reader = Reader(study._repr_html_())
    assert study.answer in reader.text
    assert study.name in reader.text
    assert {"table", "th", "td"} <= {tag for tag, _ in reader.tags}
    assert repr(study) == f"<{type(study).__name__}: {study.answer}>"


def test_names_are_text_in_a_notebook(studies):
    html = studies["compare"]._repr_html_()
    assert "&lt;i&gt;&amp;" in html
    assert "<i>" not in html


def test_a_fragment_takes_its_colours_from_where_it_stands_and_fetches_nothing():
    html = fragment("<t>", ["a & b", ""], (("name", False), ("value", True)), [(f"row {at}", str(at)) for at in range(MOST + 2)])
    reader = Reader(html)
    assert reader.text.startswith("<t>a & b")
    assert f"{MOST} of {MOST + 2} rows" in reader.text
    assert sum(tag == "tr" for tag, _ in reader.tags) == MOST + 1
    # No colour but grey with alpha, and none for paper: light and dark both show through.
    assert set(re.findall(r"#[0-9a-f]{3,6}\b|rgba?\([^)]*\)", html)) == {"rgba(128, 128, 128, 0.35)"}
    assert not re.search(r"https?://|src=|href=|@import|<script|<style", html)
    with pytest.raises(ValueError, match="zip"):
        fragment("t", [], (("name", False),), [("too", "long")])


TABLES = {
    "compare": (("metrics", "differences"), {"variant", "metric", "value", "low", "high"}),
    "sweep": (("cells",), {"cell", "status", "policy.capacity.factor", "step_time", "step_time_low"}),
    "plan": (("candidates", "targets"), {"name", "status", "parallel.ep", "cost_per_hour", "step_time"}),
    "sensitivity": (("inputs", "sobol"), {"key", "at_low", "at_high", "reach"}),
    "why": (("what_ifs", "critical_path", "waiting"), {"name", "step_time", "gain"}),
    "memory": (("gpus",), {"gpu", "weights", "total_p99", "out_of_memory"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_tables_for_pandas(name, studies):
    pd = pytest.importorskip("pandas")
    tables, columns = TABLES[name]
    study = studies[name]
    assert study.tables == tables
    for table in tables:
        assert isinstance(study.to_pandas(table), pd.DataFrame)
    first = study.to_pandas()
    assert columns <= set(first.columns)
    assert len(first) > 0
    with pytest.raises(UsageError, match=rf"there is no table 'xyzzy' \(known: {', '.join(sorted(tables))}\)"):
        study.to_pandas("xyzzy")


def test_numbers_of_a_frame_are_those_of_the_study(studies):
    pytest.importorskip("pandas")
    swept = studies["sweep"]
    assert swept.to_pandas()["step_time"].tolist() == [cell.metrics["step_time"].value for cell in swept.cells]
    compared = studies["compare"].to_pandas("differences").set_index(["variant", "metric"])
    for variant, metrics in studies["compare"].differences.items():
        assert compared.loc[variant, "step_time"]["value"] == metrics["step_time"].value
    worth = studies["why"].to_pandas()
    assert (worth["gain"].dropna() + worth["step_time"].dropna()).tolist() == pytest.approx(
        [studies["why"].content["step_time"]] * len(worth)
    )


def test_plain_attributes(studies):
    compared, swept, planned = studies["compare"], studies["sweep"], studies["plan"]
    assert compared.baseline in compared.metrics
    assert compared.winner.by == "step_time"
    assert swept.axes == ("policy.capacity.factor",)
    assert [len(swept.cells), len(swept.failed), len(swept.table)] == [2, 0, 2]
    assert all(cell in swept.cells for cell in swept.front)
    assert planned.chosen in planned.candidates
    assert planned.nearest is None
    assert set(studies["sensitivity"].silent) <= {"cluster.nic"}
    assert studies["why"].explanation.what_ifs
    assert len(studies["memory"].need.gpus) == 8


def test_a_result_has_frames_and_a_view(file):
    pytest.importorskip("pandas")
    result = moesim.run(file, QUICK)
    metrics = result.to_pandas()
    assert metrics.loc["step_time"].to_dict() == {
        part: getattr(result.metrics["step_time"], part) for part in ("value", "unit", "low", "high", "n", "basis")
    }
    for name, table in result.tables.items():
        assert list(result.to_pandas(name).columns) == list(table.columns)
        assert len(result.to_pandas(name)) == len(table)
    layers = result.to_pandas("layers")
    assert layers["routes"].tolist() == result.tables["layers"]["routes"].tolist()
    assert layers.attrs["units"]["dispatch_bytes"] == "B"
    with pytest.raises(UsageError, match="did you mean 'layers'"):
        result.to_pandas("layer")
    reader = Reader(result._repr_html_())
    assert {"step time", "assumed"} <= {word.strip() for word in re.split(r"(step time|assumed)", reader.text)}


def test_without_pandas_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas: pip install 'moesim\[pandas\]'"):
        frame({"a": [1]})
    with pytest.raises(ImportError, match="pip install"):
        Table(columns={}).to_pandas()


def test_a_sweep_with_a_folder_keeps_cells_and_goes_on(file, tmp_path):
    seen = []
    moesim.sweep(file, [*QUICK, "policy.capacity.factor=1.0,1.25"], folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept" / "cells").glob("*.json"))) == 2
    again = moesim.sweep(
        file, [*QUICK, "policy.capacity.factor=1.0,1.25,1.5"], folder=tmp_path / "kept", on_change=lambda now: seen.append(now.played)
    )
    assert seen[-1] == 1  # of three cells, two were there
    assert len(again.cells) == 3
    assert (tmp_path / "kept" / "report.html").is_file()


def test_failed_cells_are_told(file):
    swept = moesim.sweep(file, [*QUICK, "policy.capacity.factor=1.0,x"])
    assert [cell.done for cell in swept.cells] == [True, False]
    assert "factor=x failed" in swept.warnings[0]
    assert "factor=x failed" in Reader(swept._repr_html_()).text


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda file: moesim.memory(file, limit="much"), "limit: "),
        (lambda file: moesim.memory(file, limit=0), "limit is 0; it must be more than 0 bytes"),
        (lambda file: moesim.why(moesim.load_scenario(file), ["steps=1"]), "comes too late"),
        (moesim.sweep, "no matrix"),
        (lambda file: moesim.plan(file, ["parallel.ep=4,8"]), "has no targets"),
        (lambda file: moesim.compare(file, by="speed"), "names no metric"),
        (lambda file: moesim.compare(file, executor="cloud"), "there is no executor 'cloud'"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(call, said, file):
    with pytest.raises(UsageError, match=said):
        call(file)


def test_a_folder_of_somebody_else_is_left_alone(studies, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    for study in studies.values():
        with pytest.raises(UsageError, match=r"report\.html but no result of moesim"):
            study.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_script_with_worker_processes(file, tmp_path):
    # The way that the manual names: spawned workers import the script, so its code stands behind a guard.
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, moesim\n"
        "if __name__ == '__main__':\n"
        f"    words = {[*QUICK, AXIS]!r}\n"
        "    study = moesim.sweep(sys.argv[1], words, executor='processes', jobs=1)\n"
        "    print([cell.metrics['step_time'].value for cell in study.cells])\n"
    )
    done = subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True, check=True)
    here = moesim.sweep(file, [*QUICK, AXIS])
    assert json.loads(done.stdout) == [cell.metrics["step_time"].value for cell in here.cells]
