"""``moesim memory``: what is printed for people and for scripts, and what bad input is told."""

import csv
import io
import json

import pytest
from click.testing import CliRunner
from scenario_texts import SMALL

from moesim.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def test_json_and_csv_name_every_gpu(file):
    result = CliRunner().invoke(main, ["memory", file, "steps=5", "--format", "json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["schema"], told["steps"], len(told["gpus"])) == (1, 4, 8)
    assert told["limit"] == 80 * 2**30  # the memory of an H100
    for gpu in told["gpus"]:
        assert gpu["total"]["p50"] <= gpu["total"]["p99"] <= gpu["total"]["max"]
    rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(main, ["memory", file, "steps=5", "--format", "csv"]).stdout)))
    assert [float(row["total_max"]) for row in rows] == [gpu["total"]["max"] for gpu in told["gpus"]]


def test_a_tight_limit_is_missed_and_a_wide_one_is_not(file):
    tight = CliRunner().invoke(main, ["memory", file, "--limit", "1MB"])
    wide = CliRunner().invoke(main, ["memory", file, "--limit", "1TB"])
    assert "More than 1 MB on some GPU: 100 % of the steps" in tight.stdout
    assert "More than 1 TB on some GPU: 0 % of the steps" in wide.stdout


def test_a_limit_without_unit_is_refused(file):
    result = CliRunner().invoke(main, ["memory", file, "--limit", "80"])
    assert result.exit_code == 2
    assert "--limit" in result.stderr


@pytest.mark.parametrize("limit", ["0", "-3 GB"])
def test_a_limit_of_nothing_is_refused(file, limit):
    result = CliRunner().invoke(main, ["memory", file, "--limit", limit])
    assert result.exit_code == 2
    assert f"--limit: {limit} is no memory" in result.stderr


def test_variants_that_are_not_looked_at_are_named(file):
    told = CliRunner().invoke(main, ["memory", file, "steps=2"]).stdout
    assert "Warning: the variants under compare (dropless, tight) were checked, but this run is of the policy above them only" in told
