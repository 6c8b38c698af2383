"""Tables of 'moesim measure' on a machine without a data sheet: fitted, predicted from nothing but themselves, refused with reasons."""

import numpy as np
import pytest
from click.testing import CliRunner

from moesim.base.errors import CalibrationError, ScenarioError
from moesim.cli import main
from moesim.desk.measured_tables import parse_csv
from moesim.desk.scenario_file import read_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate
from moesim.facts.profile import Profile
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.fitted.overlap import Overlap
from moesim.models.fitted.own_all_to_all import OwnAllToAll
from moesim.models.fitted.token_work import TokenWork
from moesim.study.calibrate import calibrate
from moesim.study.uncertainty import deviations_of, with_drawn_parameters
from moesim.study.validate import validate
from moesim.study.validation.own_compute import expert_rows

LOOP = ExpertLoop(launch=2e-5, per_expert=1e-5, memory_rate=1e10, compute_rate=5e10, sharpness=3.0)
WORK = {"gate": TokenWork(launch=2e-5, element_rate=4e9), "permute": TokenWork(launch=1e-5, element_rate=1e9),
        "unpermute": TokenWork(launch=3e-5, element_rate=2e9)}  # fmt: skip
MOVE = OwnAllToAll(launch=5e-4, per_peer=1e-12, ramp_cost=1e-12, ramp_bytes=1e6, port_rate=5e8, fan_in=1e-12)
BESIDE = Overlap(compute_lost=0.4, exchange_lost=0.3)
EXPERTS, TOP_K = 8, 2


def at(value):
    return np.asarray([float(value)])


def loop_seconds(rows, hidden, width):
    given = np.asarray([rows], dtype=float)
    shape = {"hidden_size": at(hidden), "inter_size": at(width), "matrices": at(3), "weight_bytes": at(4), "row_bytes": at(4)}
    return float(LOOP.predict({"expert_rows": given, **shape})[0])


def compute_csv(system="some_cpu"):
    lines = [
        "system,kernel_source,operation,moe_dtype,hidden_size,inter_size,topk,num_experts,moe_ep_size,distribution,num_tokens,rows,"  # noqa: ISC004
        "active_experts,max_expert_rows,time_us,rows_per_expert"
    ]
    for hidden, width in ((256, 512), (512, 1024)):
        for tokens in (1, 8, 64, 256, 1024):
            rows = [tokens * TOP_K // EXPERTS + (expert < tokens * TOP_K % EXPERTS) for expert in range(EXPERTS)]
            routed, active = sum(rows), sum(row > 0 for row in rows)
            sizes = {"gate": tokens * hidden * EXPERTS, "permute": 2 * routed * hidden + tokens * TOP_K,
                     "unpermute": (3 * routed + tokens) * hidden}  # fmt: skip
            times = {"ffn": loop_seconds(rows, hidden, width)}
            times |= {name: float(model.predict({"elements": at(sizes[name])})[0]) for name, model in WORK.items()}
            for operation, seconds in times.items():
                kernel = "loop" if operation == "ffn" else "some kernel"
                lines.append(
                    f"{system},{kernel},{operation},float32,{hidden},{width},{TOP_K},{EXPERTS},1,balanced,{tokens},{routed},{active},"
                    f"{max(rows)},{seconds * 1e6:.9g},{' '.join(map(str, rows))}"
                )
    return "\n".join(lines) + "\n"


def exchange_csv():
    lines = ["system,library,pattern,posting,num_gpus,busiest_port_bytes,completion_us"]
    for pattern in ("even", "hot"):
        for size in (8_000, 60_000, 500_000, 4_000_000):
            seconds = float(MOVE.predict({"num_gpus": at(2), "port_bytes": at(size)})[0])
            lines.append(f"some_cpu,gloo,{pattern},receives_first,2,{size},{seconds * 1e6:.9g}")
    return "\n".join(lines) + "\n"


def overlap_csv():
    lines = ["system,library,num_gpus,rows,compute_us,exchange_us,overlapped_us,compute_beside_us,exchange_beside_us"]
    for rows, alone in ((16, 0.004), (64, 0.02), (256, 0.1)):
        for moving in (0.002, 0.03, 0.2):
            ends = [
                float(BESIDE.predict({"compute_seconds": at(alone), "exchange_seconds": at(moving), "op": np.asarray([op])})[0])
                for op in ("both", "compute", "exchange")
            ]
            lines.append(f"some_cpu,gloo,2,{rows},{alone * 1e6},{moving * 1e6}," + ",".join(f"{end * 1e6:.9g}" for end in ends))
    return "\n".join(lines) + "\n"


LAYER_HEAD = (
    "system,library,kernel_source,posting,case,moe_dtype,hidden_size,inter_size,topk,num_experts,moe_ep_size,tokens_per_rank,pass,time_us"
)
KEPT = np.asarray([[9, 7, 8, 8, 20, 0, 4, 8], [8, 8, 8, 8, 16, 16, 0, 0]])
"""Rows from two ranks to eight experts, four on each rank; 32 tokens of each, two choices."""


def layer_tables(seconds=1.0, system="some_cpu", kept=KEPT):
    rows = [
        f"{system},gloo,loop,receives_first,one,float32,512,512,2,8,2,32,{way},{seconds * 1e6}" for way in ("forward", "forward_backward")
    ]
    counts = [f"one,{rank},0,{' '.join(map(str, line))}" for rank, line in enumerate(kept.tolist())]
    return [
        parse_csv("\n".join([LAYER_HEAD, *rows]) + "\n", "held/layer.csv"),
        parse_csv("\n".join(["case,source_rank,dropped,counts", *counts]) + "\n", "held/layer_expert_counts.csv"),
    ]


@pytest.fixture(scope="module")
def found():
    texts = {"compute.csv": compute_csv(), "exchange.csv": exchange_csv(), "overlap.csv": overlap_csv()}
    return calibrate([parse_csv(text, name) for name, text in texts.items()], made="2026-11", check=False)


def test_a_machine_without_a_data_sheet_gets_a_profile_of_its_own(found):
    assert list(found.profiles) == ["some_cpu"]
    sections = found.profiles["some_cpu"].sections
    assert set(sections) == {
        "expert_loop.loop.float32", "own_all_to_all.gloo.receives_first", "overlap.gloo", *(f"token_work.{name}.float32" for name in WORK),
    }  # fmt: skip
    assert sections["expert_loop.loop.float32"].values()["compute_rate"] == pytest.approx(5e10, rel=0.01)
    assert sections["own_all_to_all.gloo.receives_first"].values()["port_rate"] == pytest.approx(5e8, rel=0.01)
    assert sections["overlap.gloo"].values() == pytest.approx({"compute_lost": 0.4, "exchange_lost": 0.3}, rel=0.01)
    assert found.unused == ()


def test_a_layer_that_was_held_back_is_the_sum_of_its_parts(found):
    # By hand: gate, permute of the fullest sender, counts, dispatch and combine of the busiest port, sorting twice, the slower
    # rank's experts, the weighted sum.
    arrived = KEPT.sum(axis=0).reshape(2, 4)

    def work(name, elements):
        return float(WORK[name].predict({"elements": at(elements)})[0])

    def moved(size):
        return float(MOVE.predict({"num_gpus": at(2), "port_bytes": at(size)})[0])

    port = max(KEPT[0, 4:].sum(), KEPT[1, :4].sum()) * 512 * 4  # what rank 0 sends to rank 1, or the other way: the same two ports
    sent = int(KEPT.sum(axis=1).max())
    wanted = (
        work("gate", 32 * 512 * 8)
        + work("permute", 2 * sent * 512 + 32 * 2)
        + moved(8 * 8)
        + 2 * moved(port)
        + 2 * work("permute", 2 * arrived.sum(axis=1).max() * 512 + 32 * 2)
        + max(loop_seconds(rows, 512, 512) for rows in arrived.tolist())
        + work("unpermute", (3 * sent + 32) * 512)
    )
    said = validate(layer_tables(), found.profiles)
    cases = next(cases for cases in said.cases if cases.table == "held/layer")
    assert cases.prediction.values[0] == pytest.approx(wanted, rel=0.01)
    assert cases.prediction.low[0] < wanted < cases.prediction.high[0]
    assert cases.prediction.reasons[1] == "the backward pass: 'moesim measure compute' times forward kernels only"


def test_another_machine_is_not_predicted_from_this_one(found):
    said = validate(layer_tables(system="other_cpu"), found.profiles)
    reasons = {item.reason for score in said.scores for item in score.unpredicted}
    assert any("no profile of 'other_cpu' has the section 'token_work.gate.float32'" in reason for reason in reasons)
    # Nor does a profile help that was carried over from elsewhere.
    table = parse_csv(compute_csv("nvidia_h200"), "compute.csv")
    said = validate([table], found.profiles)
    reasons = {item.reason for score in said.scores for item in score.unpredicted}
    assert any(reason.startswith("no profile of 'h200-sxm' has the section 'expert_loop.loop.float32'") for reason in reasons)


def test_odd_rows_are_told():
    rows = {"rows": np.asarray([4, 4]), "active_experts": np.asarray([2, 2]), "rows_per_expert": np.asarray(["3 1", ""])}
    assert expert_rows(rows).tolist() == [[3, 1], [2, 2]]  # without a list, alike for those that have any
    with pytest.raises(CalibrationError, match="adds up to 9, the column rows says 4"):
        expert_rows({**rows, "rows_per_expert": np.asarray(["8 1", ""])})
    with pytest.raises(CalibrationError, match="begins with 'three'"):
        expert_rows({**rows, "rows_per_expert": np.asarray(["three", ""])})
    text = compute_csv().replace("float32,256", "float9,256")
    done = calibrate([parse_csv(text, "compute.csv")], made="2026-11", check=False)
    assert done.profiles["some_cpu"].sections  # one strange format does not cost the other shapes their fit
    said = validate(layer_tables(kept=KEPT[:, :6]), {})
    assert any("counts of 2 ranks and 6 experts" in item.reason for score in said.scores for item in score.unpredicted)


SCENARIO = """
name: own
steps: 2
model:
  name: a layer
  layers: 1
  moe_layers: [0]
  hidden: 512
  dispatch_width: 512
  experts: 8
  top_k: 2
  expert_width: 512
  attention: {heads: 1, score_width: 1, projection_parameters: 0, cache_bytes_per_token: 0}
  weight_dtype: fp32
  expert_dtype: fp32
  activation_dtype: fp32
cluster:
  kind: one_switch
  gpus: 2
  gpu: {name: some_cpu, flops: {fp32: 50 Gflop/s}, memory: 8 GB, memory_bandwidth: 20 GB/s, nvlink: 10 GB/s, nic: 10 GB/s, sms: 1}
  bandwidth: 100 GB/s
  latency: 0
parallel: {ep: 2}
workload: {phase: prefill, tokens_per_gpu: 64, context: 1}
routing: {kind: balanced}
compute: {kind: looped, profile: mine.yaml}
exchange: {kind: direct, profile: mine.yaml, deduplicate: false, dispatch_dtype: fp32, combine_dtype: fp32}
"""


@pytest.fixture
def scenario(found, tmp_path):
    from moesim.desk.profile_files import write_profile

    write_profile(tmp_path / "mine.yaml", found.profiles["some_cpu"])
    return lambda *overrides: read_scenario(SCENARIO, file="own.yaml", folder=str(tmp_path), overrides=overrides)


def test_a_run_uses_the_profile(scenario):
    told = simulate(scenario(), read_trace=read_trace).metrics
    # 64 tokens a rank, two choices, eight experts: 16 rows for each of a rank's four experts from both ranks together x 2.
    assert told["expert_time"].value == pytest.approx(loop_seconds([32] * 4, 512, 512), rel=0.01)
    # Half of 128 routes leave the rank: 64 rows of 2 kB and their 4-byte index and weight.
    moved = float(MOVE.predict({"num_gpus": at(2), "port_bytes": at(64 * (2048 + 8))})[0])
    assert told["dispatch_transfer_time"].value == pytest.approx(moved, rel=0.02)


def test_experts_beside_an_exchange_are_slowed_as_was_measured(scenario):
    from moesim.models.exchange.fitted_limits import slowing

    fitted = scenario().exchange.fitted
    assert slowing(fitted, 0.0) == pytest.approx(0.4, rel=0.01)
    assert slowing(fitted, 0.25) == 0.25  # SMs that the scenario gives away count as they stand
    assert slowing(None, 0.0) == 0.0
    plain = Profile(name="x", gpu="x", made="", sections={})
    assert slowing(plain, 0.0) == 0.0


def test_a_format_that_was_not_measured_is_named(scenario):
    with pytest.raises(ScenarioError, match=r"has no section 'expert_loop\.loop\.bfloat16'"):
        scenario("model.expert_dtype=bf16")
    with pytest.raises(ScenarioError, match="needs a profile"):
        scenario("compute.profile=null")


def test_a_profile_of_another_machine_is_told(scenario):
    assert not [line for line in simulate(scenario(), read_trace=read_trace).warnings if "expert kernels" in line]
    other = scenario("cluster.gpu.name=another", "model.hidden=1024", "model.dispatch_width=1024")
    said = " ".join(simulate(other, read_trace=read_trace).warnings)
    assert "measured on some_cpu and the cluster has another" in said
    assert "hidden_size 1024 lies outside their range (256 to 512)" in said


def test_the_scatter_of_a_model_moves_a_run_as_a_whole(scenario):
    base = scenario("seed=5")
    profile = base.compute.fitted
    wide = deviations_of(base, profile)
    assert set(wide) == set(profile.sections)
    drawn = with_drawn_parameters(base, 1)
    before, after = (simulate(one, read_trace=read_trace).metrics["expert_time"].value for one in (base, drawn))
    assert after != before
    assert with_drawn_parameters(base, 1) == drawn
    # On another machine the same profile is less sure: the deviation of a carried section holds a fifth more.
    other = scenario("cluster.gpu.name=another")
    for name, value in deviations_of(other, profile).items():
        assert value >= 0.2 * 0.999, name
        assert value > wide[name]


def test_the_commands_from_measured_files_to_a_held_back_layer(tmp_path):
    (tmp_path / "fit").mkdir()
    (tmp_path / "held").mkdir()
    for name, text in (("compute.csv", compute_csv()), ("exchange.csv", exchange_csv())):
        (tmp_path / "fit" / name).write_text(text, encoding="utf-8")
    kept = "\n".join(
        ["case,source_rank,dropped,counts", *(f"one,{rank},0,{' '.join(map(str, row))}" for rank, row in enumerate(KEPT.tolist()))]
    )
    (tmp_path / "held" / "layer_expert_counts.csv").write_text(kept + "\n", encoding="utf-8")
    row = "some_cpu,gloo,loop,receives_first,one,float32,512,512,2,8,2,32,forward,9000"
    (tmp_path / "held" / "layer.csv").write_text(f"{LAYER_HEAD}\n{row}\n", encoding="utf-8")
    runner = CliRunner()
    done = runner.invoke(main, ["calibrate", str(tmp_path / "fit"), "-o", str(tmp_path / "mine.yaml"), "--no-check"])
    assert done.exit_code == 0, done.output
    assert "expert_loop.loop.float32" in done.stdout
    done = runner.invoke(main, ["validate", str(tmp_path / "held"), "--profile", str(tmp_path / "mine.yaml")])
    assert done.exit_code == 0, done.output
    assert "1 rows of 1 table predicted, 0 not." in done.stdout


TOGETHER = ExpertLoop(launch=1e-8, per_expert=1e-8, memory_rate=4e9, compute_rate=4e10, sharpness=1.0)
"""Both ranks at once: less of everything for each."""


def crowded_csv(kernel="loop", system="some_cpu"):
    head, *lines = overlap_csv().replace("some_cpu", system).splitlines()
    found = [head + ",kernel_source,moe_dtype,hidden_size,inter_size,num_local_experts"]
    for line in lines:
        cells = line.split(",")
        cells[4] = f"{together_seconds([int(cells[3]) / 4] * 4) * 1e6:.9g}"
        found.append(",".join([*cells, kernel, "float32", "512", "512", "4"]))
    return "\n".join(found) + "\n"


def together_seconds(rows):
    given = {"hidden_size": at(512), "inter_size": at(512), "matrices": at(3), "weight_bytes": at(4), "row_bytes": at(4)}
    return float(TOGETHER.predict({"expert_rows": np.asarray([rows], dtype=float), **given})[0])


@pytest.fixture(scope="module")
def crowded():
    texts = {"compute.csv": compute_csv(), "exchange.csv": exchange_csv(), "overlap.csv": crowded_csv()}
    return calibrate([parse_csv(text, name) for name, text in texts.items()], made="2026-11", check=False)


def test_experts_of_all_ranks_at_once_have_rates_of_their_own(crowded, found):
    section = crowded.profiles["some_cpu"].sections["expert_loop.loop.float32.together"]
    assert section.values()["memory_rate"] == pytest.approx(4e9, rel=0.01)
    assert section.values()["compute_rate"] == pytest.approx(4e10, rel=0.01)
    assert {item.basis for item in section.parameters if item.name in {"launch", "per_expert", "sharpness"}} == {"assumed"}
    # A layer of two ranks is as much slower as its slower rank's experts are.
    slower = [validate(layer_tables(), made.profiles).cases[0].prediction.values[0] for made in (found, crowded)]
    loads = KEPT.sum(axis=0).reshape(2, 4).tolist()
    wanted = max(map(together_seconds, loads)) - max(loop_seconds(rows, 512, 512) for rows in loads)
    assert slower[1] - slower[0] == pytest.approx(wanted, rel=0.02)
    # They are predicted as a regime of their own.
    scores = {score.regime: score for score in validate([parse_csv(crowded_csv(), "overlap.csv")], crowded.profiles).scores}
    assert scores["alone"].errors.mape < 0.1
    assert set(scores) == {"alone", "both", "compute", "exchange"}


def test_a_run_computes_as_all_ranks_at_once(crowded, tmp_path):
    from moesim.desk.profile_files import write_profile

    write_profile(tmp_path / "mine.yaml", crowded.profiles["some_cpu"])
    told = simulate(read_scenario(SCENARIO, file="own.yaml", folder=str(tmp_path)), read_trace=read_trace).metrics
    assert told["expert_time"].value == pytest.approx(together_seconds([32] * 4), rel=0.01)


def test_grouped_kernels_of_a_gpu_and_odd_tables_have_no_such_section():
    grouped = parse_csv(crowded_csv("grouped_mm", "nvidia_h200"), "overlap.csv")
    done = calibrate([grouped], made="2026-11", check=False)
    assert list(done.profiles["h200-sxm"].sections) == ["overlap.gloo"]
    empty = parse_csv(crowded_csv().replace(",512,512,4", ",512,512,0"), "overlap.csv")
    done = calibrate([empty], made="2026-11", check=False)
    assert list(done.profiles["some_cpu"].sections) == ["overlap.gloo"]  # the rest of the table is of use all the same
