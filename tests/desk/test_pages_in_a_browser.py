"""Every page in a real browser: nothing asked of the network, and mouse, keyboard, phone and printer do what they should."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path

import browser as chromium
import pytest
from click.testing import CliRunner
from example_result import example
from scenario_texts import SMALL

from moesim.cli import main
from moesim.desk.report.page import page as run_page
from moesim.desk.result_files import pack

pytestmark = pytest.mark.skipif(chromium.found() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is installed")

QUICK = ("steps=2", "warmup=0", "workload.tokens_per_gpu=64")
HERE = ("--executor", "inline")
COMMANDS = {
    "compare": (*QUICK, "--replicates", "2", *HERE),
    "sweep": (*QUICK, "policy.capacity.factor=1.0,1.5,x", "cluster.oversubscription=1,2,4", *HERE),
    "plan": (*QUICK, "cluster.nodes=1,2", "parallel.ep=2,8", "--target", "step_time <= 10 s", "--price", "h100-sxm=2", *HERE),
    "sensitivity": (*QUICK, "cluster.nic=30 GB/s..50 GB/s", "policy.capacity.factor=1.0..1.5", *HERE),
    "why": QUICK,
    "memory": ("steps=8", "warmup=0"),
}
PAGES = ("run", *COMMANDS)


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """Where the page of a command is; each is made once, by the command itself."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "small.yaml").write_text(SMALL)

    @cache
    def make(name: str) -> Path:
        if name == "run":
            result = example()
            parcel = pack(result, "out")
            path = folder / "run.html"
            path.write_text(run_page(result, summary=parcel.summary, scenario_text=parcel.scenario_text), encoding="utf-8")
            return path
        words = COMMANDS[name]
        done = CliRunner().invoke(main, [name, str(folder / "small.yaml"), *words, "-o", str(folder / name), "--quiet"])
        # A sweep with a factor that is none says so on its page, and exits with 1.
        assert done.exit_code == (1 if name == "sweep" else 0), done.output
        return folder / name / "report.html"

    return make


@pytest.fixture(scope="module")
def browser():
    with chromium.started(chromium.found()) as one:
        yield one


@pytest.fixture(params=PAGES)
def tab(request, browser, page_of):
    one = chromium.Tab(browser)
    one.size(1200, 900)
    one.open(page_of(request.param))
    one.name = request.param
    yield one
    assert one.problems == []
    # The page itself and nothing else: pictures are in it as data.
    assert len([url for url in one.requests if not url.startswith("data:")]) == 1
    one.call("Page.close")


COLUMN = """(([place, column]) => [...document.querySelectorAll("table.sortable")[place].tBodies[0].rows].map(
  (row) => row.cells[column].dataset.key ?? row.cells[column].textContent))"""


def column(tab, place, at):
    return tab.ask(f"{COLUMN}([{place}, {at}])")


def in_order(keys, *, down):
    """Whether a column of keys is sorted, as numbers if all are; what has no value comes last."""
    known = [key for key in keys if key]
    assert keys == known + [""] * (len(keys) - len(known))
    try:
        numbers = [float(key) for key in known]
    except ValueError:
        return sorted(known, key=str.casefold, reverse=down) == known
    return sorted(numbers, reverse=down) == numbers


def visible_heads(tab):
    """Number of the table and of the column of every heading that can be seen, with its middle."""
    return tab.ask("""[...document.querySelectorAll("table.sortable")].flatMap((table, place) => [...table.tHead.rows[0].cells].flatMap(
      (head, column) => {
        if (!head.checkVisibility()) return [];
        const button = head.firstElementChild;
        button.scrollIntoView({block: "center", inline: "center"});
        return [[place, column]];
      }))""")


def middle(tab, place, at):
    return tab.ask(f"""(() => {{
      const button = document.querySelectorAll("table.sortable")[{place}].tHead.rows[0].cells[{at}].firstElementChild;
      button.scrollIntoView({{block: "center", inline: "center"}});
      const box = button.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")


def test_a_page_sorts_by_mouse_and_by_key(tab):
    heads = visible_heads(tab)
    assert heads, "no table can be sorted"
    place = heads[0][0]
    rows = len(column(tab, place, 0))
    state = f'[...document.querySelectorAll("table.sortable")[{place}].tHead.rows[0].cells].map((head) => head.getAttribute("aria-sort"))'
    for _, at in [head for head in heads if head[0] == place]:
        tab.click(*middle(tab, place, at))
        keys = column(tab, place, at)
        assert len(keys) == rows
        assert in_order(keys, down=True)
        assert tab.ask(state)[at] == "descending"
        tab.ask(f'document.querySelectorAll("table.sortable")[{place}].tHead.rows[0].cells[{at}].firstElementChild.focus()')
        tab.key("Enter", 13, "\r")
        assert in_order(column(tab, place, at), down=False)
        assert tab.ask(state)[at] == "ascending"
        assert sum(sort is not None for sort in tab.ask(state)) == 1


def test_the_tabulator_reaches_everything_that_can_be_used_in_the_order_of_the_page(tab):
    wanted = tab.ask("""(() => {
      window.stops = [...document.querySelectorAll("a[href], button, summary, [tabindex='0']")].filter((part) => part.checkVisibility());
      return stops.map((part) => part.tagName);
    })()""")
    assert {"A", "BUTTON", "DIV"} <= set(wanted)  # links, headings that sort, and what scrolls
    seen = []
    for _ in wanted:
        tab.key("Tab", 9)
        seen.append(tab.ask("stops.indexOf(document.activeElement)"))
    assert seen == list(range(len(wanted)))
    tab.ask("stops[0].focus()")
    skip = tab.ask("[document.activeElement.className, document.activeElement.getBoundingClientRect().left >= 0]")
    assert skip == ["skip", True]  # it comes into sight when it is reached
    outline = tab.ask("(() => { const one = stops.find((part) => part.tagName === 'BUTTON'); one.focus({focusVisible: true}); "
                      "return getComputedStyle(one).outlineStyle; })()")  # fmt: skip
    assert outline == "solid"


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_hangs_over_the_edge_of_a_small_screen(tab, width):
    tab.size(width, 844, mobile=width < 500)
    tab.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    sizes = tab.ask("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
    assert max(sizes) <= width
    # What is wider than the screen scrolls by itself, and text is not tiny.
    hanging = tab.ask(f"""[...document.querySelectorAll("body *")].filter((part) => part.getBoundingClientRect().right > {width} + 1
      && !part.closest(".scroll, pre, .skip, .tip")).map((part) => part.outerHTML.slice(0, 80))""")
    assert hanging == []
    small = tab.ask("""[...document.querySelectorAll("p, li, td, th, dd, dt, summary")].filter((part) => part.checkVisibility()
      && parseFloat(getComputedStyle(part).fontSize) < 12).length""")
    assert small == 0


def test_paper_shows_all_and_hides_what_is_of_no_use_there(tab):
    tab.media("print")
    shown = tab.ask("""["nav", ".skip"].map((part) => getComputedStyle(document.querySelector(part)).display)""")
    assert shown == ["none", "none"]
    assert tab.ask("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") == "#fff"
    folded = "[...document.querySelectorAll('details')].map((part) => part.open)"
    before = tab.ask(folded)
    tab.ask(f"""window.printed = null; addEventListener("beforeprint", () => {{ printed = {folded}; }})""")
    pdf = base64.b64decode(tab.call("Page.printToPDF", preferCSSPageSize=False)["data"])
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 1
    assert tab.ask("printed") == [True] * len(before)  # what is folded on the screen is unfolded on paper
    assert tab.ask(folded) == before


def test_dark_screens_get_a_dark_page(tab):
    light = tab.ask("getComputedStyle(document.body).backgroundColor")
    tab.media(prefers_color_scheme="dark")
    dark = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert [sum(map(int, re.findall(r"\d+", colour)[:3])) > 384 for colour in (light, dark)] == [True, False]


def test_values_stand_under_the_pointer(tab):
    maps = tab.ask("document.querySelectorAll('.cells').length")
    marks = tab.ask("[...document.querySelectorAll('.hover > title')].map((title) => title.textContent)")
    assert maps + len(marks) > 0
    assert all(mark.strip() for mark in marks)
    if not maps:
        return
    box = tab.ask("""(() => { const cover = document.querySelector(".cells"); cover.scrollIntoView({block: "center"});
      const box = cover.getBoundingClientRect(); return [box.x, box.y, box.width, box.height, cover.dataset.cells]; })()""")
    data = json.loads(box[4])
    tip = """(() => { const tip = document.querySelector(".tip"); return tip.hidden ? null : tip.textContent; })()"""
    assert tab.ask(tip) is None
    for row in (0, len(data["rows"]) - 1):
        for at in (0, len(data["columns"]) - 1):
            tab.move(box[0] + box[2] * (at + 0.5) / len(data["columns"]), box[1] + box[3] * (row + 0.5) / len(data["rows"]))
            said = f"{data['row']} {data['rows'][row]}, {data['column']} {data['columns'][at]}: {data['texts'][row][at]}"
            assert tab.ask(tip) == said
    tab.move(1, 1)
    assert tab.ask(tip) is None


def test_without_scripts_all_of_it_can_be_read(browser, page_of):
    one = chromium.Tab(browser)
    one.call("Emulation.setScriptExecutionDisabled", value=True)
    one.open(page_of("sweep"))
    text = one.call("DOM.getOuterHTML", nodeId=one.call("DOM.getDocument", depth=0)["root"]["nodeId"])["outerHTML"]
    assert "<table" in text
    assert not re.search(r"<th[^>]*><button", text)
    one.call("Page.close")


TIP = """(() => { const tip = document.querySelector(".tip"); return tip.hidden ? null : tip.textContent; })()"""


def focus(tab, figure):
    tab.ask(f"document.querySelectorAll('figure .scroll')[{figure}].focus()")


def figures_with_values(tab):
    """For each figure its place, the titles of its marks and the data of its maps, in the order in which keys go through them."""
    return tab.ask("""[...document.querySelectorAll("figure .scroll")].map((figure, place) => [place, [...figure.querySelectorAll(
      ".hover, .cells")].map((part) => part.dataset.cells
      ? ["map", part.dataset.cells] : ["mark", part.querySelector("title").textContent])])
      .filter(([, stops]) => stops.length)""")


def test_arrow_keys_go_through_the_values_of_every_figure(tab):
    found = figures_with_values(tab)
    assert found
    for figure, stops in found:
        focus(tab, figure)
        assert tab.ask(TIP) is None
        for kind, text in stops[:6]:
            tab.key("ArrowRight", 39)
            if kind == "mark":
                assert tab.ask(TIP) == text
                continue
            data = json.loads(text)
            said = f"{data['row']} {data['rows'][0]}, {data['column']} {data['columns'][0]}: {data['texts'][0][0]}"
            assert tab.ask(TIP) == said
            assert tab.ask("getComputedStyle(document.querySelector('.frame')).display") != "none"
            tab.key("End", 35)
            assert tab.ask(TIP).endswith(f"{data['column']} {data['columns'][-1]}: {data['texts'][0][-1]}")
            if len(data["rows"]) > 1:
                tab.key("ArrowDown", 40)
                assert tab.ask(TIP).startswith(f"{data['row']} {data['rows'][1]}, ")
                tab.key("ArrowUp", 38)
                tab.key("ArrowUp", 38)  # the top row has nothing above it
            assert tab.ask(TIP).startswith(f"{data['row']} {data['rows'][0]}, ")
        # What the keys show is in sight, framed, and told to screen readers.
        box = tab.ask("(() => { const box = document.querySelector('.frame').getBoundingClientRect(); return [box.top, box.bottom]; })()")
        assert -4 <= box[0] < 900
        assert box[1] > 0
        assert tab.ask("document.querySelector('.tip').getAttribute('role')") == "status"
        tab.key("Escape", 27)
        assert tab.ask(TIP) is None


def test_a_finger_keeps_a_value_until_it_touches_something_else(tab):
    tab.size(390, 844, mobile=True)
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=1)
    figure, stops = figures_with_values(tab)[0]
    kind, text = stops[0]
    x, y = tab.ask(f"""(() => {{ const port = document.querySelectorAll("figure .scroll")[{figure}];
      const part = port.querySelector(".hover, .cells");
      part.scrollIntoView({{block: "center", inline: "center"}});
      const [box, seen] = [part.getBoundingClientRect(), port.getBoundingClientRect()];
      return [(Math.max(box.left, seen.left) + Math.min(box.right, seen.right)) / 2, box.y + box.height / 2]; }})()""")
    tab.tap(x, y)
    said = tab.ask(TIP)
    assert said == text if kind == "mark" else ": " in said
    tab.tap(5, 5)
    assert tab.ask(TIP) is None
