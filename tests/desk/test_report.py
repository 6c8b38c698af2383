from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from example_result import example

from moesim.desk.report import style
from moesim.desk.report.figures import FIGURES, draw
from moesim.desk.report.figures.health import health
from moesim.desk.report.figures.timeline import MOST_GPUS, pick_gpus, window
from moesim.desk.report.page import answer, page
from moesim.desk.report.style import multiples
from moesim.desk.result_files import pack, save, unpack
from moesim.desk.words import interval, show
from moesim.facts.record import Result, Table, Value

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "image", "rect"}


class Reader(HTMLParser):
    """Collect tags with their attributes and check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def result() -> Result:
    return example()


def drawn(result: Result) -> str:
    parcel = pack(result, "out")
    return page(result, summary=parcel.summary, scenario_text=parcel.scenario_text)


@pytest.fixture(scope="module")
def text(result: Result) -> str:
    return drawn(result)


@pytest.fixture(scope="module")
def reader(text: str) -> Reader:
    return Reader(text)


def with_table(result: Result, name: str, **columns: Any) -> Result:
    table = result.tables[name]
    changed = Table(columns={**table.columns, **columns}, units=table.units)
    return dataclasses.replace(result, tables={**result.tables, name: changed})


def test_the_page_asks_nothing_of_the_network(text: str, reader: Reader) -> None:
    without = re.sub(r"<script>.*?</script>|base64,[^\"]*", "", text, flags=re.DOTALL)
    assert not re.findall(r"//(?!www\.w3\.org/)\w", without)
    assert not re.search(r"\bhttps?:|fetch|XMLHttp|import\(", text[text.index("<script>") : text.index("</script>")])
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_every_id_is_there_once_and_every_reference_has_one(text: str, reader: Reader) -> None:
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="|url\()#([^")]+)', text) + re.findall(r'aria-labelledby="([^"]+)"', text)
    assert wanted
    assert set(wanted) <= set(ids)


def test_every_figure_can_be_read_without_seeing_it(result: Result, reader: Reader) -> None:
    images = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    # The course of routers is not drawn of so few steps, nor is the whole step of what only goes forward and back.
    assert len(images) == len(FIGURES) - 2 == sum(tag == "figcaption" for tag, _ in reader.tags)
    for attributes in images:
        assert len(attributes["aria-label"] or "") > 30
        assert attributes["tabindex"] == "0"
    assert all(attributes["aria-hidden"] == "true" for tag, attributes in reader.tags if tag == "svg")
    assert ("html", {"lang": "en"}) in reader.tags
    for drawing in draw(result).values():
        assert drawing.caption.endswith((".", ". "))


def test_the_answer_stands_first(result: Result, reader: Reader) -> None:
    step = result.metrics["step_time"]
    assert step.value is not None
    said = answer(result)
    assert said.startswith(
        f"A step takes {show(step.value, 's')} (95 % interval {interval(step)}). With perfectly even loads it would take"
    )
    assert "20.1 % of the routes are dropped" in said
    plain = reader.text.replace("\u00a0", " ")
    assert plain.index(said) < plain.index("Time\n")
    assert result.warnings[0] in reader.text
    for sentence in result.assumptions:
        assert sentence in reader.text


def test_figures_state_the_extremes_that_the_tables_hold(result: Result) -> None:
    # Found independently of the drawing code: plain loops over the tables.
    experts, drawings = result.tables["experts"], draw(result)
    best = (0.0, -1, -1)
    for layer in range(4):
        routes = experts["routes"][experts["moe_layer"] == layer]
        best = max(best, (float(routes.max() / routes.mean()), layer, int(routes.argmax())))
    assert f"expert {best[2]} of MoE layer {best[1]} gets {best[0]:.1f} times" in drawings["experts"].caption
    traffic = result.tables["traffic"]
    most = int((traffic["dispatch_bytes"] + traffic["combine_bytes"]).argmax())
    assert f"GPU {traffic['source'][most]} sends most to GPU {traffic['destination'][most]}" in drawings["traffic"].caption
    links = result.tables["links"]
    assert str(links["link"][links["utilisation"].argmax()]) in drawings["links"].caption
    gpus = result.tables["gpus"]
    assert f"GPU {gpus['waiting_s'].argmax()} waits longest" in drawings["phases"].caption


def test_l8_the_page_is_the_same_every_time(result: Result, text: str) -> None:
    assert drawn(result) == text
    # Importing pyplot would cost time, and pick a window system.
    code = """
import sys
from example_result import example
from moesim.desk.report.page import page
from moesim.desk.result_files import pack

parcel = pack(example(), "out")
sys.stdout.write(page(parcel.result, summary=parcel.summary, scenario_text=parcel.scenario_text))
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root / "tests"), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    )
    assert other.stdout.decode() == text


def test_the_page_is_drawn_again_from_the_folder_alone(result: Result, text: str, tmp_path: Path) -> None:
    save(result, tmp_path, report=True)
    first = (tmp_path / "report.html").read_bytes()
    parcel = unpack(tmp_path)
    assert page(parcel.result, summary=parcel.summary, scenario_text=parcel.scenario_text).encode() == first


def test_the_users_matplotlib_is_left_alone(result: Result) -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        loud = draw(result)
        assert mpl.rcParams["font.size"] == 31.0
    assert dict(mpl.rcParams) == before
    # The user's own settings do not leak into the page either.
    assert loud == draw(result)


def test_text_from_the_user_is_text(result: Result) -> None:
    nasty = '<script>alert(1)</script> & "quotes" $x^2$'
    scenario = dataclasses.replace(result.scenario, name=nasty)
    found = drawn(dataclasses.replace(result, scenario=scenario, warnings=(nasty,)))
    assert found.count("<script>") == 1
    assert nasty in Reader(found).text


def test_a_run_without_drops_says_so(result: Result) -> None:
    kept = with_table(result, "layers", dropped=np.zeros(len(result.tables["layers"]), dtype=np.int64))
    zero = Value(value=0.0, unit="", low=0.0, high=0.0, n=3, basis="exact")
    kept = dataclasses.replace(kept, metrics={**kept.metrics, "drop_rate": zero})
    found = Reader(drawn(kept))
    assert "No route was dropped in this run." in found.text
    assert "Drop rate of every layer" not in found.text
    assert "No route is dropped" in answer(kept) or "no route is dropped" in answer(kept)


def test_a_run_on_one_gpu_needs_no_network(result: Result) -> None:
    def first(table: Table) -> Table:
        return table.where(table["gpu"] == 0)

    tables: Mapping[str, Table] = {
        **result.tables,
        "gpus": first(result.tables["gpus"]),
        "ranks": first(result.tables["ranks"]),
        "timeline": first(result.tables["timeline"]).where(~np.isin(first(result.tables["timeline"])["phase"], ("dispatch", "combine"))),
        "links": result.tables["links"].where(np.zeros(len(result.tables["links"]), dtype=bool)),
        "traffic": result.tables["traffic"].where(np.zeros(len(result.tables["traffic"]), dtype=bool)),
        "collectives": result.tables["collectives"].where(np.zeros(len(result.tables["collectives"]), dtype=bool)),
        "steps": result.tables["steps"].where(result.tables["steps"]["step"] == 1),
    }
    facts = {**result.facts, "gpus": 1, "nodes": 1, "links": 0, "graph": {"nodes": [["gpu:0", "gpu", 0]], "edges": []}}
    found = Reader(drawn(dataclasses.replace(result, tables=tables, facts=facts)))
    assert "Nothing was sent from GPU to GPU in this run." in found.text
    assert "Step by step" not in found.text
    assert "nobody waits" in found.text


def test_many_gpus_are_thinned_to_those_that_matter() -> None:
    # 300 GPUs; everybody waits 1 s for GPU 211 and nobody else is waited for, so 211 must be among those shown.
    gpus = np.arange(300)
    table = Table(columns={"gpu": gpus, "waited_for": np.where(gpus == 211, -1, 211), "waiting_s": (gpus != 211).astype(float)})
    shown = pick_gpus(table)
    assert len(shown) == MOST_GPUS
    assert 211 in shown
    assert shown == sorted(set(shown))
    assert max(shown) == 299


def test_the_timeline_shows_where_waiting_is_longest() -> None:
    # Layers 1, 2, 3 run in this order; the dispatch of layer 2 waits longest, so the window holds layers 2 and 3.
    table = Table(
        columns={
            "layer": np.array([1, 2, 3]),
            "direction": np.array(["forward"] * 3),
            "phase": np.array(["dispatch"] * 3),
            "lane": np.array(["communication"] * 3),
            "waiting_s": np.array([1.0, 5.0, 2.0]),
            "start_s": np.array([0.0, 10.0, 20.0]),
            "end_s": np.array([5.0, 16.0, 29.0]),
        }
    )
    seen = window(table)
    assert (seen.layers, seen.start, seen.end) == ((2, 3), 10.0, 29.0)


def test_hundreds_of_gpus_and_layers_stay_small(result: Result) -> None:
    gpus, layers, experts = 256, 58, 256
    rng = np.random.default_rng(0)
    every = {
        "experts": {"moe_layer": np.repeat(np.arange(layers), experts), "expert": np.tile(np.arange(experts), layers)},
        "ranks": {"moe_layer": np.repeat(np.arange(layers), gpus), "gpu": np.tile(np.arange(gpus), layers)},
    }
    tables = dict(result.tables)
    for name, columns in every.items():
        size = layers * 256
        filled = {"step": np.ones(size, dtype=np.int64), "routes": rng.integers(0, 99, size), "rows": rng.integers(0, 99, size)} | columns
        tables[name] = Table(columns=filled)
    wide = {name: np.resize(column, gpus) for name, column in result.tables["gpus"].columns.items()}
    tables["gpus"] = Table(columns={**wide, "gpu": np.arange(gpus), "node": np.arange(gpus) // 8})
    source = np.repeat(np.arange(gpus), gpus)
    sent = {
        "source": source,
        "destination": np.tile(np.arange(gpus), gpus),
        "dispatch_bytes": rng.random(gpus**2),
        "combine_bytes": rng.random(gpus**2),
    }
    tables["traffic"] = Table(columns=sent | {"copies": np.ones(gpus**2)})
    tables["layers"] = Table(
        columns={name: np.resize(column, layers) for name, column in result.tables["layers"].columns.items()}
        | {"moe_layer": np.arange(layers)}
    )
    big = dataclasses.replace(result, tables=tables, facts={**result.facts, "gpus": gpus})
    found = drawn(big)
    Reader(found)
    assert len(found) < 1_500_000
    assert f"64 of {gpus} rows; all are in gpus.csv" in found


@pytest.mark.parametrize("high", [1e-9, 0.37, 1.0, 23.0, 8e5])
def test_ticks_are_round_and_inside(high: float) -> None:
    places = multiples(0.0, high)
    assert places[0] == 0.0
    assert places[-1] <= high * (1 + 1e-9)
    assert 2 <= len(places) <= 6


def test_values_read_as_people_write_them() -> None:
    assert show(0.0260152, "s") == "26.0 ms"
    assert show(3.2e-6, "s") == "3.20 µs"
    assert show(34_412.0, "tokens/s") == "34.4 k tokens/s"
    assert show(0.0, "", share=True) == "0 %"
    low_high = Value(value=0.026, unit="s", low=0.0259, high=0.0261, n=3, basis="exact")
    assert interval(low_high) == "25.9 – 26.1 ms"
    narrow = dataclasses.replace(low_high, low=0.025999, high=0.026001)
    assert interval(narrow) == "± 1.00 µs"
    assert interval(dataclasses.replace(low_high, low=None)) == ""
    assert interval(dataclasses.replace(low_high, low=0.0261 * (1 - 1e-15))) == ""


def test_routers_over_many_steps_are_drawn_with_their_alarms() -> None:
    # Twelve steps of two layers, one of which collapses in step 5.
    steps, layers = 12, 2
    step, layer = np.repeat(np.arange(steps), layers), np.tile(np.arange(layers), steps)
    sick = (layer == 1) & (step >= 5)
    table = Table(
        columns={
            "step": step,
            "moe_layer": layer,
            "expert_max": np.where(sick, 700, 150),
            "expert_mean": np.full(len(step), 100.0),
            "idle_experts": np.where(sick, 6, 0),
            "load_entropy": np.where(sick, 0.25, 0.9),
            "routes": np.full(len(step), 800),
            "dropped": np.where(sick, 500, 0),
        }
    )
    result = example()
    result = dataclasses.replace(result, tables={**result.tables, "layers": table})
    with style.paper():
        drawing = health(result)
    assert drawing is not None
    assert drawing.alt == "4 curves over 12 steps. MaxVio goes from 0.50 to 3.25; at most 6 experts are idle."
    few = dataclasses.replace(result, tables={**result.tables, "layers": table.where(step < 9)})
    with style.paper():
        assert health(few) is None
