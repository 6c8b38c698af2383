"""``import moesim``: light, and with the names that the manual promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scenario_texts import SMALL

import moesim
from moesim.base.errors import ScenarioError, UsageError
from moesim.desk.result_files import load, save
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"


def test_the_manual_names_every_public_name_and_no_other() -> None:
    rows = re.findall(r"^\| `moesim\.(\w+)(?:\(.*?\))?` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(moesim.__all__)


def test_public_names_are_the_functions_themselves() -> None:
    assert (moesim.load, moesim.save, moesim.load_scenario, moesim.simulate) == (load, save, load_scenario, simulate)
    assert set(moesim.__all__) <= set(dir(moesim))
    with pytest.raises(AttributeError, match="module 'moesim' has no attribute 'simulat'"):
        _ = moesim.simulat


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, moesim\ndir(moesim)\nprint([name for name in ('numpy', 'yaml', 'pydantic', 'simpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_run_loads_and_simulates(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    scenario = moesim.load_scenario(path, ["steps=2", "warmup=0"])
    expected = simulate(scenario, read_trace=read_trace)
    for result in (moesim.run(path, ["steps=2", "warmup=0"]), moesim.run(str(path), ("steps=2", "warmup=0")), moesim.run(scenario)):
        assert result.scenario == scenario
        assert result.metrics == expected.metrics
    assert list(tmp_path.iterdir()) == [path]


def test_run_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    with pytest.raises(ScenarioError, match="did you mean 'steps'"):
        moesim.run(path, ["step=2"])
    with pytest.raises(UsageError, match="the override 'steps=2' comes too late"):
        moesim.run(moesim.load_scenario(path), ["steps=2"])
