"""The page of a comparison: everything is on it, nothing is outside it, and it can be read without seeing colours or pictures."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scenario_texts import SMALL

from moesim.desk.compare_words import change, corrected, price, told, winner
from moesim.desk.comparing import ask, conclude
from moesim.desk.report.comparison.page import drawings, page
from moesim.desk.report.comparison.panels import together
from moesim.desk.report.points import front
from moesim.desk.study_cells import play
from moesim.study.compare import Difference, Winner

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


def compared(folder, text=SMALL, words=("workload.tokens_per_gpu=64",), variants=(), replicates=2):
    path = folder / "small.yaml"
    path.write_text(text)
    question = ask(path, words, variants, replicates=replicates)
    return conclude(question, [play(cell) for cell in question.cells()])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("page"), variants=["moved:policy.placement=round_robin", "<b>&:policy.capacity.factor=0.5"])


@pytest.fixture(scope="module")
def text(outcome):
    return page(outcome)


@pytest.fixture(scope="module")
def reader(text):
    return Reader(text)


def test_the_page_asks_nothing_of_the_network(text, reader):
    without = re.sub(r"<script>.*?</script>|base64,[^\"]*", "", text, flags=re.DOTALL)
    assert not re.findall(r"//(?!www\.w3\.org/)\w", without)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_id_is_there_once_and_every_reference_has_one(text, reader):
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text) + re.findall(r'aria-labelledby="([^"]+)"', text)) <= set(ids)


def test_all_figures_are_there_and_say_what_they_show(outcome, reader):
    found = drawings(outcome)
    assert list(found) == ["tradeoff", "differences", "exposed", "phases", "memory", "experts", "ranks", "traffic", "waiting"]
    images = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert len(images) == len(found)
    for attributes in images:
        assert len(attributes["aria-label"]) > 30
        assert attributes["tabindex"] == "0"
    for drawing in found.values():
        assert drawing.caption.rstrip().endswith(".")
    for name in outcome.played:
        assert name in found["tradeoff"].alt
        assert name in found["memory"].alt
    # One scale for all: its bright end is the largest number of any variant.
    loads = found["experts"]
    largest = max(float(number) for number in re.findall(r"(\d+\.\d+)(?=;|\.$)", loads.alt))
    assert float(loads.scale[1].rstrip("×")) == pytest.approx(largest, abs=0.01)


def test_the_verdict_table_has_every_variant_and_can_be_sorted(outcome, reader):
    tables = [attributes.get("class") for tag, attributes in reader.tags if tag == "table"]
    assert tables == ["sortable verdicts", "sortable"]
    cells = [attributes for tag, attributes in reader.tags if tag == "td" and "data-key" in attributes]
    assert all(float(cell["data-key"]) == float(cell["data-key"]) for cell in cells if cell["data-key"])
    for name in outcome.played:
        assert name in reader.text
    # Each verdict is a shape and a word, not only a colour.
    assert "▼ +" in reader.text
    assert reader.text.count("not distinguishable") > 3


def test_the_answer_stands_first(outcome, reader):
    said = f"{winner(outcome.comparison.winner)} {price(outcome)}".strip()
    assert reader.text.replace("\u00a0", " ").index(said) < reader.text.index("Verdicts")


def test_names_of_variants_are_text(text, reader):
    assert "<b>&:" not in text
    assert "<b>&" in reader.text
    assert text.count("<script>") == 1


def test_l8_the_page_is_the_same_every_time(outcome, text):
    assert page(outcome) == text


def test_without_drops_the_load_of_gpus_is_the_other_axis(tmp_path):
    outcome = compared(
        tmp_path, words=["workload.tokens_per_gpu=64", "policy.capacity=null", "policy.placement.kind=contiguous,round_robin"]
    )
    found = drawings(outcome)
    assert found["tradeoff"].title == "Step time against GPU load, max ÷ mean"
    assert price(outcome) == ""


def test_one_gpu_needs_no_network(tmp_path):
    text = SMALL.replace(
        "{kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 4, nic: 400 Gb/s}", "{kind: one_switch, gpu: h100-sxm, gpus: 1}"
    )
    text = text.replace("ep: 8", "ep: 1")
    found = Reader(page(compared(tmp_path, text, replicates=1)))
    assert "Nothing was sent from GPU to GPU." in found.text
    assert "Nobody waited for anybody." in found.text


def test_variants_of_different_sizes_stand_side_by_side(tmp_path):
    outcome = compared(tmp_path, variants=["small:cluster.nodes=1,parallel.ep=4,model.moe_layers=[1]"])
    assert {"ranks", "traffic", "experts"} <= set(drawings(outcome))
    assert not outcome.comparison.same_choices["small"]


def test_equal_heat_maps_are_drawn_once():
    grids = {"a": np.zeros((2, 2)), "b": np.ones((2, 2)), "c": np.zeros((2, 2)), "d": np.zeros((1, 4))}
    assert [names for names, _ in together(grids)] == [["a", "c"], ["b"], ["d"]]


def test_the_front_holds_what_nothing_beats_in_both():
    points = [(0.0, 5.0), (0.0, 6.0), (1.0, 4.0), (2.0, 4.5), (3.0, 1.0)]
    assert front(points, "lower") == [(0.0, 5.0), (1.0, 4.0), (3.0, 1.0)]
    assert front(points, "higher") == [(0.0, 6.0)]


def difference(**given):
    return Difference(
        **{"value": 0.1, "low": 0.05, "high": 0.15, "unit": "s", "verdict": "worse", "differs": True, "better": "lower", **given}
    )


def test_differences_in_words():
    assert change(difference(per_cent=12.345)) == "+12.3 %"
    assert change(difference(value=-0.1, per_cent=-5.0)) == "−5 %"
    assert change(difference(per_cent=2345.6)) == "+2,346 %"
    assert change(difference()) == "+100 ms"
    assert change(difference(value=0.0, per_cent=0.0)) == "±0"
    assert change(difference(value=0.016, unit="", per_cent=7.0), share=True) == "+1.6 points"
    both = {"per_cent": 10.0, "corrected_low": 0.02, "corrected_high": 0.18}
    assert corrected(difference(**both, corrected_per_cent_low=2.0, corrected_per_cent_high=19.5)) == "+2 … +19.5 %"
    # An interval that is relative to what may be 0 says nothing.
    assert corrected(difference(**both, corrected_per_cent_low=-50.0, corrected_per_cent_high=1e6)) == "20.0 – 180 ms"
    assert corrected(difference(**both)) == "20.0 – 180 ms"
    assert told(difference(better="neither", verdict="not distinguishable")) == "differs"
    assert told(difference(differs=None)) == "one piece of evidence"


def test_a_winner_in_words():
    won = Winner(
        by="step_time", better="lower", unit="s", name="a", best="a", next="b", margin=0.002, low=0.001, high=0.003, per_cent=5.0,
        distinguishable=True, tied=("a",),
    )  # fmt: skip
    assert winner(won) == "a wins by step time: 2.00 ms (5 %) better than b, interval 1.00 – 3.00 ms."
    tied = dataclasses.replace(won, name=None, tied=("a", "b", "c"), distinguishable=False)
    assert winner(tied) == "No winner: a, b and c are not distinguishable by step time; a has the lowest."
    equal = dataclasses.replace(tied, margin=0.0, low=0.0, high=0.0)
    assert winner(equal) == "No winner: a, b and c are not distinguishable by step time; a and b share the lowest."
    alone = dataclasses.replace(tied, low=None, high=None)
    assert winner(alone) == "No winner: a has the lowest step time, and one piece of evidence cannot tell it from chance."
