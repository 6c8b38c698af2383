"""Measured times of experts: the compute model ``table``, the files it is read from, and the hosts whose ranks it is made for."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import FieldError, PluginError, ScenarioError
from moesim.base.registry import plugin
from moesim.desk.expert_times import read_expert_times
from moesim.desk.scenario_file import load_scenario
from moesim.engine.simulate import simulate
from moesim.facts.program import BACKWARD, FORWARD
from moesim.models.compute.table import ExpertTimes, Table, interpolated
from moesim.models.topology.shaped_hosts import PAYLOAD, ShapedHosts
from moesim.testing import tiny_settings

CALIBRATION = Path(__file__).parents[1] / "data" / "measured" / "testbed" / "moe_fwd_calibration.json"

TEXT = """\
name: eight ranks on two cores
model:
  name: layer
  layers: 1
  moe_layers: [0]
  hidden: 512
  experts: 16
  top_k: 2
  expert_width: 1536
  dispatch_width: 512
  activation_dtype: fp32
  expert_dtype: fp32
  attention: {heads: 8, score_width: 64, projection_parameters: 1048576, cache_bytes_per_token: 1024}
cluster: {kind: shaped_hosts, ranks: 8, ranks_per_node: 4, rank_link: 200 Mb/s, uplink: 100 Mb/s, cores: 2}
parallel: {ep: 8}
workload: {phase: prefill, tokens_per_gpu: 256, context: 64}
routing: {kind: power_law, alpha: 1.2}
exchange: {kind: direct, deduplicate: false, dispatch_dtype: fp32, combine_dtype: fp32, launch: 5 ms, start: barrier}
compute: {kind: table, file: calibration.json, shape: 512x1536, dense_rate: 100 Gflop/s}
"""


def read(tmp_path, document, **keys):
    path = tmp_path / "calibration.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_expert_times(str(path), keys)


def test_a_table_is_read_between_its_points_and_beyond_them():
    # Nothing for no rows; the first time below the first point; half way between 3 and 5 s; 5 s x 8/4 beyond the last.
    found = interpolated(np.array([0, 1, 2, 3, 4, 8]), np.array([2.0, 4.0]), np.array([3.0, 5.0]))
    assert found.tolist() == [0.0, 3.0, 3.0, 4.0, 5.0, 10.0]


def test_backward_times_are_those_of_the_rank_with_the_fewest_experts_unless_one_alone_was_timed(tmp_path):
    known = {"ffn": {"8x16,4": 1.0}, "ffn_bwd": {"8x16/4,4": 5.0, "8x16/2,4": 4.0, "8x160/1,4": 9.0}}
    assert read(tmp_path, known)[0].backward == (4.0,)
    known["ffn_bwd"]["8x16,4"] = 3.0
    assert read(tmp_path, known)[0].backward == (3.0,)
    assert read(tmp_path, {"ffn": {"8x16,4": 1.0}, "ffn_bwd": {"8x160/1,4": 9.0}})[0].backward == ()


def test_experts_run_one_after_the_other_and_dips_are_filled():
    setting = tiny_settings()[0]
    times = ExpertTimes(rows=(1, 2, 4), forward=(2.0, 1.0, 4.0))
    kernels = Table(experts=times).begin(setting)
    # 2 rows take 2 s as 1 row does: the table's dip is noise. So 2 + 2 + 4.
    assert kernels.experts(np.array([[1, 2, 4], [0, 0, 0]]), direction=FORWARD).tolist() == [8.0, 0.0]
    # Nobody measured backward: two GEMMs for each one forward.
    assert kernels.experts(np.array([[1, 0, 0]]), direction=BACKWARD).tolist() == [4.0]
    own = Table(experts=ExpertTimes(rows=(1, 2), forward=(1.0, 2.0), backward=(5.0, 6.0))).begin(setting)
    assert own.experts(np.array([[2]]), direction=BACKWARD).tolist() == [6.0]


def test_what_is_no_expert_goes_by_the_rate_that_is_given():
    setting = tiny_settings()[0]
    kernels = Table(experts=ExpertTimes(rows=(1,), forward=(1.0,)), dense_rate=10.0, launch=0.5).begin(setting)
    assert kernels.dense(np.array([20.0, 0.0]), np.array([0.0, 0.0]), dtype="fp32").tolist() == [2.5, 0.0]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"rows": (), "forward": ()}, "the table is empty"),
        ({"rows": (2, 1), "forward": (1.0, 1.0)}, "must be increasing"),
        ({"rows": (1, 2), "forward": (1.0,)}, "1 times for 2 numbers of rows"),
        ({"rows": (1,), "forward": (1.0,), "backward": (1.0, 2.0)}, "2 times for 1 numbers of rows"),
        ({"rows": (1,), "forward": (0.0,)}, "more than 0 s"),
    ],
)
def test_tables_that_cannot_be_are_refused(keys, word):
    with pytest.raises(FieldError, match=word):
        ExpertTimes(**keys)


def test_a_table_of_another_shape_than_the_models_is_refused():
    setting = tiny_settings()[0]
    with pytest.raises(PluginError, match="times of 512x512 experts, but those of tiny are 64x32"):
        Table(experts=ExpertTimes(rows=(1,), forward=(1.0,), shape="512x512")).begin(setting)
    Table(experts=ExpertTimes(rows=(1,), forward=(1.0,), shape="64x32")).begin(setting)
    with pytest.raises(FieldError, match="needs a file"):
        Table()
    with pytest.raises(FieldError, match="not both"):
        Table(file="x.json", experts=ExpertTimes(rows=(1,), forward=(1.0,)))
    with pytest.raises(PluginError, match="was not read"):
        Table(file="x.json").begin(setting)


def test_a_calibration_is_read_by_its_shape():
    found, problems = read_expert_times(str(CALIBRATION), {"shape": "512x1536"})
    assert problems == []
    assert found.rows[:3] == (1, 8, 16)
    assert found.forward[0] == pytest.approx(1.2724e-4, rel=1e-3)
    assert len(found.backward) == len(found.rows)
    assert found.shape == "512x1536"
    missing = read_expert_times(str(CALIBRATION), {})[1]
    assert "several shapes" in missing[0].message
    wrong = read_expert_times(str(CALIBRATION), {"shape": "512x1537"})[1]
    assert "did you mean '512x1536'" in wrong[0].message


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ("{", "not json"),
        ([1], "no calibration of experts"),
        ({"ffn": {}}, "no calibration of experts"),
        ({"ffn": {"8x8": 1.0}}, "does not say a shape and a number of rows"),
        ({"ffn": {"8x8,0": 1.0}}, "does not say a shape and a number of rows"),
        ({"ffn": {"8x8,1": -1.0}}, "not a time above 0"),
        ({"ffn": {"8x8,1": True}}, "not a time above 0"),
        ({"ffn": {"8x8,1": 1.0}, "ffn_bwd": {"8x8,2": 1.0}}, "other rows backward"),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path, document, word):
    times, problems = read(tmp_path, document)
    assert times is None
    assert word in problems[0].message.lower() or word in problems[0].message


def test_a_file_that_is_not_there_is_a_problem_with_its_name(tmp_path):
    assert "no such file" in read_expert_times(str(tmp_path / "none.json"), {})[1][0].message


def test_a_scenario_with_shared_cores_and_a_calibration_runs_and_is_slower_on_fewer_cores(tmp_path):
    (tmp_path / "calibration.json").write_text(CALIBRATION.read_text())
    path = tmp_path / "scenario.yaml"
    path.write_text(TEXT)
    seconds = {}
    for cores in (0, 2, 1):
        scenario = load_scenario(path, [f"cluster.cores={cores}"])
        result = simulate(scenario, read_trace=lambda _: None)
        seconds[cores] = result.metrics["step_time"].value
        assert result.metrics["step_time"].value >= result.metrics["step_time_if_no_communication"].value
    assert seconds[0] < seconds[2] < seconds[1]


def test_a_wrong_shape_is_reported_at_its_line(tmp_path):
    (tmp_path / "calibration.json").write_text(CALIBRATION.read_text())
    path = tmp_path / "scenario.yaml"
    path.write_text(TEXT.replace("shape: 512x1536", "shape: 9x9"))
    with pytest.raises(ScenarioError, match="there are no experts of '9x9'"):
        load_scenario(path)


def test_shaped_hosts_carry_what_is_left_of_their_rates_for_data():
    cluster = ShapedHosts(ranks=4, ranks_per_node=2, rank_link=25e6, uplink=12.5e6, rank_links={3: 5e6}, latency=1e-4).build()
    speed = dict(zip(cluster.link_names, cluster.bandwidth.tolist(), strict=True))
    assert speed["rank-out:0"] == pytest.approx(25e6 * 1448 / 1514)
    assert speed["rank-in:3"] == pytest.approx(5e6 * PAYLOAD)
    assert speed["uplink-out:1"] == pytest.approx(12.5e6 * PAYLOAD)
    assert [cluster.link_names[link] for link in cluster.route(0, 3)] == ["rank-out:0", "uplink-out:0", "uplink-in:1", "rank-in:3"]
    assert [cluster.link_names[link] for link in cluster.route(0, 1)] == ["rank-out:0", "rank-in:1"]
    assert cluster.route_latency()[0, 3] == pytest.approx(4e-4)
    assert cluster.nodes == 2


@pytest.mark.parametrize(
    ("keys", "field", "word"),
    [
        ({"ranks": 6, "ranks_per_node": 4}, "ranks_per_node", "do not divide"),
        ({"ranks": 8, "ranks_per_node": 4}, "uplink", "need the rate of their uplinks"),
        ({"ranks": 4, "rank_links": {4: 1e6}}, "rank_links", "no rank 4"),
        ({"ranks": 5000}, "ranks", "too many"),
    ],
)
def test_hosts_that_cannot_be_are_refused(keys, field, word):
    with pytest.raises(FieldError, match=word) as caught:
        plugin("topology", "shaped_hosts")(**keys)
    assert caught.value.field == field
