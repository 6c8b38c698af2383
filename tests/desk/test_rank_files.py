"""Recordings of unequal ranks: what is read, what a scenario makes of it, and what is refused with its place."""

import pytest

from moesim.base.errors import ScenarioError
from moesim.desk.rank_files import read_ranks
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.scenario_text import dump

SCENARIO = """
name: recorded ranks
model: {preset: deepseek-v2-lite, layers: 2, moe_layers: [1]}
cluster: {kind: one_switch, gpus: 2}
parallel: {ep: 2}
workload: {phase: decode, tokens_per_gpu: 3, context: 100, ranks: {file: ranks.csv}}
routing: {kind: uniform}
"""


def written(folder, text):
    (folder / "ranks.csv").write_text(text, encoding="utf-8")
    (folder / "scenario.yaml").write_text(SCENARIO, encoding="utf-8")
    return folder / "scenario.yaml"


def test_steps_and_ranks_may_come_in_any_order(tmp_path):
    path = written(tmp_path, "# what the scheduler logged\nrank,step,tokens,context\n1,1,2,30.6\n0,0,4,10\n0,1,5,20\n")
    ranks = load_scenario(path).workload.ranks
    # Step 0 does not name rank 1: it had nothing. (4 + 0 + 5 + 2) / 4 = 2.75, rounded 3.
    assert [step.tokens for step in ranks.recorded] == [(4, 0), (5, 2)]
    assert [step.contexts for step in ranks.recorded] == [(10, 0), (20, 31)]
    assert ranks.file is None


def test_a_resolved_scenario_holds_the_recording(tmp_path):
    scenario = load_scenario(written(tmp_path, "step,rank,tokens\n0,0,4\n0,1,2\n"))
    again = read_scenario(dump(scenario), file="again", folder=tmp_path / "elsewhere")
    assert again == scenario
    assert again.workload.ranks.recorded[0].contexts == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("step,rank\n0,0\n", 1, "no column 'tokens'"),
        ("step,rank,tokens\n0,0,4\n0,0,4\n", 3, "rank 0 of step 0 a second time"),
        ("step,rank,tokens\n0,0,4\n0,1,many\n", 3, "tokens is 'many'"),
        ("# a\nstep,rank,tokens\n0,-1,4\n", 3, "rank is -1: it must be from 0"),
        ("step,rank,tokens\n0,0\n", 2, "tokens is ''"),
        ("step,rank,tokens,context\n0,0,4,nan\n", 2, "context is 'nan'"),
        ("step,rank,tokens\n", 0, "a head and no rows"),
        ("", 0, "holds no rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, line, message):
    path = tmp_path / "ranks.csv"
    path.write_text(text, encoding="utf-8")
    steps, (problem,) = read_ranks(str(path), {})
    assert steps is None
    assert problem.line == line
    assert message in problem.message


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "ranks.csv"
    path.write_bytes(b"\xff\xfe\x00step")
    _, (problem,) = read_ranks(str(path), {})
    assert "not UTF-8" in problem.message


def test_a_scenario_says_where_its_recording_is_wrong(tmp_path):
    with pytest.raises(ScenarioError, match=r"ranks\.csv:2:1.*tokens is 'x'"):
        load_scenario(written(tmp_path, "step,rank,tokens\n0,0,x\n"))
    with pytest.raises(ScenarioError, match=r"write tokens_per_gpu: 50"):
        load_scenario(written(tmp_path, "step,rank,tokens\n0,0,50\n0,1,50\n"))
    with pytest.raises(ScenarioError, match=r"3 ranks are named, but a stage has 2"):
        load_scenario(written(tmp_path, "step,rank,tokens\n0,0,3\n0,1,3\n0,2,3\n"))
