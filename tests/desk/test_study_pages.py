"""Pages of studies: what stands on them, drawn from the JSON alone, and what `moesim report` says of folders that have none."""

from __future__ import annotations

import copy
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from scenario_texts import SMALL

from moesim.base.errors import ResultError
from moesim.cli import main
from moesim.desk.report import hover, style
from moesim.desk.report.points import front, scaled
from moesim.desk.report.study import memory, plan, sensitivity, sweep, why
from moesim.desk.report.study.again import draw_again
from moesim.desk.report.study.charts import MARKS, Bar, Line, Metric, Point, bars, heat, lines, scatter
from moesim.desk.words import capital

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "image", "rect"}


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def value(number, unit="s", low=None, high=None):
    return {"value": number, "unit": unit, "low": low, "high": high, "n": 3, "basis": "assumed"}


def cell(axes, time=None, drops=0.0, error=""):
    name = ", ".join(f"{key}={one}" for key, one in axes.items())
    metrics = {} if time is None else {"step_time": value(time, low=0.9 * time, high=1.1 * time), "drop_rate": value(drops, "")}
    return {
        "name": name,
        "axes": axes,
        "digest": "d" * 64,
        "status": "failed" if time is None else "done",
        "error": error,
        "metrics": metrics,
    }


def swept(cells, axes=("a", "b"), warnings=()):
    columns = {axis: list({repr(one["axes"][axis]): one["axes"][axis] for one in cells if axis in one["axes"]}.values()) for axis in axes}
    return {
        "schema": 1, "study": "sweep", "name": "by <hand> & eye", "version": "1", "scenario_digest": "e" * 64,
        "axes": [{"key": axis, "values": values} for axis, values in columns.items()], "cells": cells, "warnings": list(warnings),
    }  # fmt: skip


FOUR = [
    cell({"a": a, "b": b}, time, drops)
    for a, b, time, drops in ((1, "x", 1e-3, 0.3), (1, "y", 2e-3, 0.2), (2, "x", 3e-3, 0.2), (2, "y", 4e-3, 0.0))
]


def test_the_answer_of_a_sweep_names_the_fastest_and_the_fastest_without_drops():
    # (1, x) is fastest and drops most; only (2, y) drops nothing; (2, x) is beaten by (1, y), which drops as much in less time.
    said = sweep.answer(sweep.sweep_of(swept(FOUR)))
    assert said == (
        "a=1, b=x has the shortest step, 1.00 ms, and drops 30.0 %; of the 1 cells that drop nothing, a=2, b=y is fastest, 4.00 ms. "
        "3 cells are beaten by none in step time and drop rate at once."
    )


def test_a_page_of_a_sweep_holds_every_cell_failed_ones_too_and_escapes_names():
    broken = cell({"a": 3, "b": "<b>"}, error="no & such\nthing")
    text = sweep.page(swept([*FOUR, broken], warnings=[{"text": "beware", "cells": [one["name"] for one in FOUR]}]), "name: <x>")
    reader = Reader(text)
    assert all(part in reader.text for part in ("by <hand> & eye", "failed: a=3, b=<b>: no & such", "beware", "name: <x>", "1 failed"))
    assert "<hand>" not in text
    table = next(attributes for tag, attributes in reader.tags if tag == "table")
    assert table["class"] == "sortable"
    assert text.count("<tr") == 1 + 5 + 1 + 2 * 4  # the cells, and two metrics of four that are folded
    assert sweep.page(swept(FOUR)) == sweep.page(swept(FOUR))


def test_one_cell_and_no_cell_that_worked_still_have_a_page():
    one = sweep.page(swept(FOUR[:1]))
    assert "<figure" not in one
    none = sweep.page(swept([cell({"a": 1, "b": "x"}, error="no")]))
    assert "None of the 1 cells has a step time." in none


def test_maps_stand_where_lines_would_be_too_many():
    many = [cell({"a": a, "b": b}, 1e-3 * (a + b), 0.1) for a in range(1, 6) for b in range(1, 6)]
    assert 'id="figure-map-step_time"' in sweep.page(swept(many))
    assert 'id="figure-map-step_time"' not in sweep.page(swept(FOUR))
    data = json.loads(re.search(r"data-cells='([^']*)'", sweep.page(swept(many)))[1])
    assert (data["row"], data["column"]) == ("b", "a")
    # From the top: b = 5, and a = 1 first, so (1 + 5) ms.
    assert (data["rows"][0], data["columns"][0], data["texts"][0][0]) == ("5", "1", "6.00 ms")


def test_a_crowd_of_points_is_one_mark():
    points = [Point(x=at, y=1.0, text=f"p{at}", filled=at == 0) for at in range(MARKS + 1)]
    with style.paper():
        crowded = scatter(points, "s", across=Metric(name="gpus", unit=""), upward=Metric(name="step_time", unit="s"))
        sparse = scatter(points[:5], "s", across=Metric(name="gpus", unit=""), upward=Metric(name="step_time", unit="s"))
    assert re.findall(r"<title>(.*?)</title>", crowded) == ["p0"]
    assert re.findall(r"<title>(.*?)</title>", sparse) == [f"p{at}" for at in range(5)]


def test_marks_say_what_they_are_whatever_is_in_their_names():
    text = """a "b" 'c' <d> & e"""
    grid = np.array([[1.0, np.nan]])
    with style.paper():
        drawn = bars([Bar(name="x", pieces=((1.0, "#000000"),), text=text)], "b", unit="s", title="t")
        mapped = heat(grid, "h", of=Metric(name="step_time", unit="s"), row="r", rows=[text], column="c", columns=["1", "2"])
    reader = Reader(f"<div>{drawn}{mapped}</div>")
    assert text in reader.text
    (data,) = (json.loads(attributes["data-cells"]) for _, attributes in reader.tags if "data-cells" in attributes)
    assert data == {"row": "r", "rows": [text], "column": "c", "columns": ["1", "2"], "texts": [["1.00 s", "none"]]}


def test_a_map_that_is_too_large_has_no_values_under_the_pointer(monkeypatch):
    monkeypatch.setattr(hover, "MOST", 1)
    with style.paper():
        mapped = heat(np.zeros((1, 2)), "h", of=Metric(name="step_time", unit="s"), row="r", rows=["1"], column="c", columns=["1", "2"])
    assert "data-cells" not in mapped


def test_lines_say_their_intervals():
    one = Line(name="l", x=np.array([1.0, 2.0]), y=np.array([1.0, 2.0]), low=np.array([0.5, np.nan]), high=np.array([1.5, np.nan]))
    with style.paper():
        drawn = lines([one], "l", across="n", upward=Metric(name="step_time", unit="s"))
    assert re.findall(r"<title>(.*?)</title>", drawn) == ["l, n 1: 1.00 s (500 ms – 1.50 s)", "l, n 2: 2.00 s"]


def test_points_fit_their_axes():
    with style.paper():
        area = style.axes(style.canvas(100, 100), 0, 0, 0, 0)
        scaled(area, [1.0, 3.0], "step_time", "s", upright=True)
        scaled(area, [0.25], "drop_rate", "", upright=False)
    assert area.get_ylim() == pytest.approx((1 - 0.14, 3 + 0.14))  # 7 % of 2 on both sides
    assert area.get_xlim() == pytest.approx((0.2375, 0.2625))  # one point: 5 % of it
    assert front([(0, 2), (1, 3), (1, 1), (2, 1)], "lower") == [(0, 2), (1, 1)]
    assert [capital(text) for text in ("drop rate", "GPU load", "")] == ["Drop rate", "GPU load", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every study, made by the commands; the pages are drawn with them."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "small.yaml").write_text(SMALL)
    quick = ("steps=2", "warmup=0", "workload.tokens_per_gpu=64")
    words = {
        "run": quick,
        "compare": (*quick, "--replicates", "2", "--executor", "inline"),
        "sweep": (*quick, "policy.capacity.factor=1.0,1.5", "--executor", "inline"),
        "plan": (
            *quick,
            "parallel.ep=4,8",
            "--target",
            "step_time <= 1 ns",
            "--target",
            "peak_memory <= 0.9 of GPU memory",
            "--executor",
            "inline",
        ),
        "sensitivity": (*quick, "cluster.nic=30 GB/s..50 GB/s", "--executor", "inline"),
        "why": quick,
        "memory": quick,
    }
    for name, mine in words.items():
        done = CliRunner().invoke(main, [name, str(folder / "small.yaml"), *mine, "-o", str(folder / name), "--quiet"])
        assert done.exit_code == (3 if name == "plan" else 0), done.output
    return folder


@pytest.mark.parametrize("name", ["run", "compare", "sweep", "plan", "sensitivity", "why", "memory"])
def test_l8_a_folder_is_enough_to_draw_its_page_again(name, folders):
    drawn = (folders / name / "report.html").read_bytes()
    (folders / name / "report.html").unlink()
    done = CliRunner().invoke(main, ["report", str(folders / name)])
    assert (done.exit_code, done.stdout) == (0, f"{folders / name / 'report.html'}\n")
    assert (folders / name / "report.html").read_bytes() == drawn
    reader = Reader(drawn.decode())
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), tag
        for reference in (attributes.get("aria-labelledby"), (attributes.get("href") or "").removeprefix("#")):
            assert not reference or reference in ids or reference.startswith("data:")
    pictures = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert all(len(attributes["aria-label"]) > 20 for attributes in pictures)


def test_a_plan_that_does_not_fit_says_what_it_misses(folders):
    text = Reader((folders / "plan" / "report.html").read_text(encoding="utf-8")).text
    assert "othing meets every target" in text
    assert "step time at most 1.00 ns" in text
    assert "peak memory at most 90.0 % of GPU memory" in text


def test_the_page_of_a_comparison_needs_its_runs_and_says_which_are_gone(folders, tmp_path):
    again = tmp_path / "compare"
    shutil.copytree(folders / "compare", again)
    content = json.loads((again / "comparison.json").read_text())
    digest = content["variants"]["tight"]["cells"][0]
    (again / "cells" / f"{digest}.json").unlink()
    with pytest.raises(ResultError, match=rf"not all runs of tight are in .*: {digest}\.json is not in cells; run `moesim compare` again"):
        draw_again(again)
    (again / "comparison.json").write_text(json.dumps({**content, "variants": {"tight": {}}}))
    with pytest.raises(ResultError, match=r"comparison\.json is damaged: KeyError: .*; run `moesim compare` again"):
        draw_again(again)
    (again / "comparison.json").write_text(json.dumps({**content, "schema": 7}))
    with pytest.raises(ResultError, match=r"has schema 7, this moesim reads schema 1; run `moesim compare` again"):
        draw_again(again)
    (again / "comparison.json").write_text("{")
    with pytest.raises(ResultError, match=r"comparison\.json is damaged: Expecting"):
        draw_again(again)


@pytest.mark.parametrize(("name", "command"), [("network.json", "network"), ("validation.json", "validate")])
def test_folders_without_a_page_are_named(name, command, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ResultError, match=rf"`moesim {command}` found: that has no page"):
        draw_again(tmp_path)


@pytest.mark.parametrize("name", ["plan", "sensitivity", "why", "memory"])
def test_a_damaged_folder_is_named_and_not_drawn(name, folders, tmp_path):
    good = json.loads((folders / name / f"{name}.json").read_bytes())
    path = tmp_path / f"{name}.json"
    for broken, said in (
        ("{", "is damaged: "),
        ("[]", "has schema None"),
        (json.dumps({**good, "schema": 99}), "has schema 99, this moesim reads schema 1"),
        (json.dumps({key: item for key, item in good.items() if key != "name"}), "is damaged: KeyError: 'name'"),
    ):
        path.write_text(broken)
        with pytest.raises(ResultError, match=re.escape(said)):
            draw_again(tmp_path)
    changed = copy.deepcopy(good)
    changed["name"] = None
    path.write_text(json.dumps(changed))
    draw_again(tmp_path)  # odd, and nothing to stumble over


def test_a_sweep_without_its_table_or_scenario(folders, tmp_path):
    (tmp_path / "summary.json").write_bytes((folders / "sweep" / "summary.json").read_bytes())
    with pytest.raises(ResultError, match=r"cannot read .*scenario\.yaml"):
        draw_again(tmp_path)


def test_without_a_report_none_is_written_and_an_old_one_goes(folders, tmp_path):
    quick = ("steps=2", "warmup=0", "workload.tokens_per_gpu=64", "policy.capacity.factor=1.0,1.5", "--executor", "inline", "--quiet")
    base = ["sweep", str(folders / "small.yaml"), *quick, "-o", str(tmp_path / "s")]
    assert CliRunner().invoke(main, base).exit_code == 0
    assert (tmp_path / "s" / "report.html").is_file()
    assert CliRunner().invoke(main, [*base, "--no-report"]).exit_code == 0
    assert not (tmp_path / "s" / "report.html").exists()


@pytest.mark.parametrize("name", ["why", "memory"])
def test_answers_without_a_folder_leave_no_file_and_o_needs_a_name(name, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("steps=1", "warmup=0", "workload.tokens_per_gpu=64", "--quiet")
    plain = CliRunner().invoke(main, [name, str(folders / "small.yaml"), *quick])
    assert plain.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    with_folder = CliRunner().invoke(main, [name, str(folders / "small.yaml"), *quick, "-o", "kept"])
    assert with_folder.stdout == plain.stdout
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"report.html", f"{name}.json"}
    nameless = CliRunner().invoke(main, [name, str(folders / "small.yaml"), "-o", " "])
    assert (nameless.exit_code, "-o names no folder" in nameless.output) == (2, True)


def test_a_tornado_starts_at_the_base():
    one = {
        "key": "k",
        "base": 1.0,
        "low": 0.5,
        "high": 2.0,
        "unit": "",
        "at_low": 0.8,
        "at_high": 1.1,
        "reach": 0.2,
        "changed": [],
        "problem": None,
    }
    content = {"metric": "step_time", "unit": "s", "base": 1.0, "inputs": [one], "sobol": []}
    drawn = sensitivity.tornado(content, Metric(name="step_time", unit="s"))
    assert drawn.alt == "Bars: k: 800 ms at 0.5, 1.10 s at 2."
    assert sensitivity.tornado(content | {"inputs": [one | {"reach": 0.0}]}, Metric(name="step_time", unit="s")) is None
    assert sensitivity.shares(content) is None


def test_answers_of_why_and_memory():
    path = {name: {} for name in why.SHARES} | {"phase": {"dispatch: transfer": 0.006, "experts": 0.004}}
    change = {"name": "nic x 2", "sentence": "", "step_time": 0.008, "gain": 0.002, "gain_share": 0.2, "error": ""}
    content = {"step_time": 0.01, "critical_path": path, "what_ifs": [change]}
    assert why.answer(content) == (
        "A step takes 10.0 ms. Most of its critical path is dispatch: transfer, 6.00 ms. "
        "What would help most: nic x 2, 2.00 ms or 20.0 % of the step."
    )
    worse = content | {"what_ifs": [change | {"gain": -1e-3}]}
    assert why.answer(worse).endswith("None of the changes that were tried makes it shorter.")
    spread = {"p50": 1e9, "p99": 2e9, "max": 3e9}
    need = {"any_gpu": spread, "limit": 2.5e9, "out_of_memory": {"value": 0.01}}
    assert memory.answer(need) == (
        "The GPU that needs most in a step needs 1.00 GB in half of the steps and 3.00 GB at most. "
        "More than 2.50 GB on some GPU: 1.00 % of the steps."
    )


def test_a_plan_on_paper_knows_its_words():
    assert plan.candidates.__doc__
    content = {"objective": "cost_per_hour", "currency": "EUR", "prices": {}}
    assert plan._cost(content, {"objective": 12.5, "gpus": 8}) == "12.50 EUR/h"
    assert plan._cost(content | {"objective": "gpus"}, {"objective": 8.0, "gpus": 8}) == "8 GPUs"
    assert plan._target(content, "step_time <= 60 ms") == "step time at most 60.0 ms"
    assert plan._target(content, "tokens_per_second >= 4e6") == "throughput at least 4.00 M tokens/s"
