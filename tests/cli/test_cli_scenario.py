"""``check``, ``init``, ``list`` and ``schema``."""

import json

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from scenario_texts import SMALL

from moesim.base import registry
from moesim.base.registry import SLOTS, kinds
from moesim.cli import main
from moesim.desk.presets.models import model_presets
from moesim.desk.scenario_file import load_scenario
from moesim.desk.starter import starters
from moesim.facts.gpu_presets import gpu_presets


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_check_says_ok_and_what_it_read(good):
    result = invoke("check", good)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("ok: small, tiny (2 MoE layers of 16 experts, top 2), nvlink_nodes, ep 8, ")
    assert "2 variants: dropless, tight" in result.stdout
    assert "1 step," not in result.stdout
    assert "ok: other," in invoke("check", good, "name=other").stdout


def test_check_prints_every_problem_on_a_line_and_exits_with_2(good):
    good.write_text(SMALL.replace("seed", "sead").replace("ep: 8", "eq: 8"))
    result = invoke("check", good, "steps=0")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{good}:2:1: sead: unknown key 'sead'; did you mean 'seed'?")
    assert [line.split(": ")[1] for line in lines] == ["sead", "parallel", "parallel.eq", "steps"]


def test_check_in_json(good):
    result = invoke("check", good, "--format", "json")
    assert json.loads(result.stdout) == {"schema": 1, "ok": True, "name": "small", "problems": []}
    result = invoke("check", good, "steps=0", "--format", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "schema": 1,
        "ok": False,
        "problems": [
            {"file": "override steps=0", "line": 0, "column": 0, "path": "steps", "message": "0 is too small: it must be at least 1"}
        ],
    }


@pytest.mark.parametrize("name", list(starters()))
def test_init_writes_a_scenario_that_loads(tmp_path, name):
    path = tmp_path / "new.yaml"
    result = invoke("init", path, "--preset", name)
    assert (result.exit_code, result.stdout) == (0, f"wrote {path}; next: moesim run {path}\n")
    assert load_scenario(path).steps > 1
    assert invoke("init", "-", "--preset", name).stdout == path.read_text()


def test_init_does_not_write_over_a_file(good):
    result = invoke("init", good)
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert good.read_text() == SMALL
    assert invoke("init", good, "--force").exit_code == 0
    assert good.read_text() != SMALL


def test_init_refuses_what_it_cannot_do(tmp_path):
    assert "did you mean 'small'?" in invoke("init", tmp_path / "x", "--preset", "smal").stderr
    result = invoke("init", tmp_path / "no" / "x.yaml")
    assert (result.exit_code, result.stderr) == (2, f"Error: cannot write {tmp_path}/no/x.yaml: no such file or directory\n")
    assert set(starters()) == {line.split()[0] for line in invoke("init", "--preset", "list").stdout.splitlines()}


def test_list_shows_everything():
    text = invoke("list").stdout
    for slot in SLOTS.values():
        assert f"\n{slot.plural}" in f"\n{text}"
        for kind in kinds(slot.name):
            assert f"\n  {kind}\n" in text
    for name in (*model_presets(), *gpu_presets()):
        assert f"\n  {name}\n" in text


def test_list_shows_keys_with_units_and_defaults():
    text = invoke("list", "capacities").stdout
    assert text.startswith("capacities   policy.capacity: {rule: NAME, ...}\n")
    assert "- factor: a number more than 0; required" in text
    assert '- drop: probs | position; default "probs"' in text
    assert "- nic: a bandwidth with a unit ('400 Gb/s') or null; default null" in invoke("list", "topologies").stdout
    assert invoke("list", "capacity").stdout == text


def test_list_warns_of_installed_plugins_that_do_not_load(monkeypatch):
    monkeypatch.setattr(registry, "_asked_outside", [True])
    monkeypatch.setattr(registry, "_outside", {"theirs": "the plug-in 'theirs' failed to load: ImportError: no torch", "fine": ""})
    result = invoke("list", "gates")
    assert (result.exit_code, result.stderr) == (0, "Warning: the plug-in 'theirs' failed to load: ImportError: no torch\n")
    assert json.loads(invoke("list", "gates", "--format", "json").stdout)["schema"] == 1


def test_list_in_json_and_of_nothing():
    [group] = json.loads(invoke("list", "gates", "--format", "json").stdout)["groups"]
    assert [entry["name"] for entry in group["entries"]] == list(kinds("gate"))
    result = invoke("list", "placementz")
    assert result.exit_code == 2
    assert "did you mean 'placements'?" in result.stderr


def test_schema_is_a_schema():
    schema = json.loads(invoke("schema").stdout)
    Draft202012Validator.check_schema(schema)
    assert {"type": "integer", "minimum": 1, "default": 1}.items() <= schema["properties"]["steps"].items()
