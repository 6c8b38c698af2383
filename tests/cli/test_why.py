"""``moesim why``: what is printed for people and for scripts."""

import csv
import io
import json

import pytest
from click.testing import CliRunner
from scenario_texts import SMALL

from moesim.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("why") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def test_json_has_shares_that_add_up_and_changes_in_order(file):
    result = CliRunner().invoke(main, ["why", file, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["schema"] == 1
    assert told["steps"] == 2
    for name in ("phase", "gpu", "layer"):
        assert sum(told["critical_path"][name].values()) == pytest.approx(told["step_time"], rel=1e-7)
    gains = [what_if["gain"] for what_if in told["what_ifs"] if what_if["gain"] is not None]
    assert gains == sorted(gains, reverse=True)
    for what_if in told["what_ifs"]:
        assert what_if["step_time"] + what_if["gain"] == pytest.approx(told["step_time"])


def test_text_and_csv_say_the_same(file):
    text = CliRunner().invoke(main, ["why", file, "policy.capacity=null"])
    sheet = CliRunner().invoke(main, ["why", file, "policy.capacity=null", "--format", "csv"])
    assert text.exit_code == sheet.exit_code == 0
    names = [row["name"] for row in csv.DictReader(io.StringIO(sheet.stdout))]
    assert len(names) > 4
    assert all(name in text.stdout for name in names)
    assert "Who kept whom waiting" in text.stdout


def test_bad_input_is_told_like_everywhere(file):
    result = CliRunner().invoke(main, ["why", file, "policy.capacity.facter=1"])
    assert result.exit_code == 2
    assert "did you mean" in result.stderr
