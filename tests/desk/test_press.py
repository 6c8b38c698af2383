"""The press: a second process draws the page, and where it cannot, this one does."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from example_result import example
from scenario_texts import SMALL

from moesim.base.errors import ScenarioError
from moesim.desk.report import figures, press
from moesim.desk.report.figures import in_two
from moesim.desk.report.page import draw
from moesim.desk.result_files import Parcel, pack
from moesim.desk.scenario_file import read_scenario
from moesim.facts.record import Result
from moesim.facts.scenario import Scenario

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process is forked on Linux only")


@pytest.fixture(scope="module")
def parcel() -> Parcel:
    return pack(example(), "out")


@pytest.fixture
def other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the press be had although these tests have loaded matplotlib, and may run on one core."""
    monkeypatch.setattr(press, "_worth_it", lambda: True)


def drawn_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note every page that this process draws; a forked one notes it in its own copy of the list."""
    pages: list[int] = []

    def noted(given: Parcel) -> bytes:
        pages.append(os.getpid())
        return draw(given)

    monkeypatch.setattr("moesim.desk.report.page.draw", noted)
    return pages


@pytest.mark.usefixtures("other_process")
def test_the_other_process_draws_the_same_page(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(parcel)
    pages = drawn_here(monkeypatch)
    with closing(press.Press()) as made:
        assert made.draw(parcel) == expected
    assert pages == []


def unpicklable() -> object:
    @dataclasses.dataclass(frozen=True)
    class Local:
        """Of a function, so that nobody can import it: pickle.PicklingError, or AttributeError, by version of Python."""

        kind: str = "local"

    return Local()


def misplaced() -> object:
    cls = dataclasses.make_dataclass("Moved", [("kind", str, "moved")], frozen=True)
    cls.__module__ = __name__
    globals()["Moved"] = object  # another thing of that name: pickle.PicklingError
    return cls()


class Stubborn:
    """Code of a plug-in that runs while it is sent, and fails."""

    kind = "stubborn"

    def __reduce__(self) -> str:
        raise RuntimeError("not me")


@pytest.mark.usefixtures("other_process")
@pytest.mark.parametrize("make", [unpicklable, misplaced, Stubborn])
def test_a_plugin_that_cannot_be_sent_is_drawn_here(parcel: Parcel, monkeypatch: pytest.MonkeyPatch, make) -> None:
    policy = dataclasses.replace(parcel.result.scenario.policy, gate=make())
    scenario = dataclasses.replace(parcel.result.scenario, policy=policy)
    other = dataclasses.replace(parcel, result=dataclasses.replace(parcel.result, scenario=scenario))
    expected = draw(other)
    pages = drawn_here(monkeypatch)
    with closing(press.Press()) as made:
        assert made.draw(other) == expected
    assert pages == [os.getpid()]


@pytest.mark.usefixtures("other_process")
def test_a_press_that_died_is_made_up_for(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = drawn_here(monkeypatch)
    with closing(press.Press()) as made:
        made._process.kill()
        made._process.join()
        assert made.draw(parcel) == draw(parcel)
    assert pages == [os.getpid()]


@pytest.mark.usefixtures("other_process")
def test_figures_drawn_in_two_processes_are_the_same_in_the_same_order(parcel: Parcel) -> None:
    assert list(in_two.draw_in_two(parcel.result).items()) == list(figures.draw(parcel.result).items())


@pytest.mark.usefixtures("other_process")
def test_a_figure_that_fails_in_the_other_process_fails_here(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Result) -> None:
        raise RuntimeError(f"in {os.getpid()}")

    monkeypatch.setattr(in_two, "THERE", (failing,))
    with pytest.raises(RuntimeError, match=f"in {os.getpid()}$"):
        in_two.draw_in_two(parcel.result)


def reader(text: str, here: list[int]):
    """Return what reads this text, and notes it if it does so in this process."""

    def read() -> Scenario:
        here.append(os.getpid())
        return read_scenario(text, file="small.yaml", folder=".")

    return read


@pytest.mark.usefixtures("other_process")
@pytest.mark.parametrize("report", [True, False])
def test_the_other_process_reads_the_scenario(report: bool) -> None:
    here: list[int] = []
    with closing(press.Press(reader(SMALL, here), report=report)) as made:
        assert made.reads
        assert made.scenario() == read_scenario(SMALL, file="small.yaml", folder=".")
    assert here == []


@pytest.mark.usefixtures("other_process")
def test_the_other_process_reads_draws_and_ends(parcel: Parcel) -> None:
    with closing(press.Press(reader(SMALL, []))) as made:
        made.scenario()
        assert made.draw(parcel) == draw(parcel)
        process = made._process
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.usefixtures("other_process")
def test_problems_of_a_scenario_come_back_whole() -> None:
    here: list[int] = []
    text = SMALL.replace("seed:", "sede:")
    assert text != SMALL
    with pytest.raises(ScenarioError) as expected:
        read_scenario(text, file="small.yaml", folder=".")
    with closing(press.Press(reader(text, here))) as made, pytest.raises(ScenarioError) as found:
        made.scenario()
    assert found.value.problems == expected.value.problems
    assert here == []


@pytest.mark.usefixtures("other_process")
@pytest.mark.parametrize("make", [unpicklable, misplaced, Stubborn])
def test_a_scenario_that_cannot_be_sent_is_read_here(make) -> None:
    here: list[int] = []

    def read() -> Scenario:
        scenario = reader(SMALL, here)()
        return dataclasses.replace(scenario, policy=dataclasses.replace(scenario.policy, gate=make()))

    with closing(press.Press(read)) as made:
        assert made.scenario().policy.gate.kind in {"local", "moved", "stubborn"}
    assert here == [os.getpid()]


@pytest.mark.usefixtures("other_process")
def test_a_defect_while_reading_is_met_here_where_it_can_be_traced() -> None:
    def read() -> Scenario:
        raise ZeroDivisionError(os.getpid())

    with closing(press.Press(read)) as made, pytest.raises(ZeroDivisionError, match=str(os.getpid())):
        made.scenario()


@pytest.mark.usefixtures("other_process")
def test_a_reader_that_died_is_made_up_for() -> None:
    here: list[int] = []

    def read() -> Scenario:
        if os.getpid() != mine:
            os._exit(1)
        return reader(SMALL, here)()

    mine = os.getpid()
    with closing(press.Press(read)) as made:
        assert made.scenario().seed == 1
    assert here == [mine]


def test_a_real_run_and_the_report_command_draw_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")

    def moesim(*words: str) -> None:
        done = subprocess.run([sys.executable, "-m", "moesim", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    moesim("run", "small.yaml", "-o", "out", "--quiet")
    first = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    moesim("report", "out")
    assert (tmp_path / "out" / "report.html").read_bytes() == first
