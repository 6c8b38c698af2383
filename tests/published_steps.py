"""Predictions of steps that others published, with shipped defaults.

python tests/published_steps.py            print all of them, phase by phase (minutes)
python tests/published_steps.py --write    write them to tests/data/published_predictions.json too, which the validation page shows
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

from moesim.base.registry import plugin
from moesim.desk.scenario_file import read_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.bubbles import covered
from moesim.engine.simulate import simulate
from moesim.facts.model import Attention, MoeModel
from moesim.facts.scenario import Parallel, Scenario, Workload

DATA = Path(__file__).parent / "data"
FACTS = json.loads((DATA / "published_steps.json").read_text(encoding="utf-8"))
PREDICTIONS = DATA / "published_predictions.json"
EXCHANGES = {
    "a2a": {"deduplicate": False, "start": "barrier"},  # counts are exchanged first
    "deepep": {"deduplicate": True},
    "hybridep": {"deduplicate": True},
}

DUALPIPE = """
name: a pair of chunks
model: {preset: deepseek-v3, layers: 4, moe_layers: [0, 1, 2, 3], dense_width: 0, groups: 8}
cluster: {kind: nvlink_nodes, nodes: 8, gpus_per_node: 8, gpu: h800-sxm}
parallel: {ep: 64}
workload: {tokens_per_gpu: 8192}
routing: {kind: router, scale: 0.0001, scores: true}
policy: {gate: {kind: group_limited}}
exchange: {kind: hierarchical}
schedule: {kind: one_f_one_b, microbatches: 2}
"""


@cache
def layer_ms(case):
    """Return forward and backward milliseconds of a case of Megatron-LM's ``moe_perf``."""
    name, library, _, dtype = case.split("_")
    shape = FACTS["moe_perf"]["models"][name]
    scenario = Scenario(
        name=case,
        model=MoeModel(
            name=name,
            layers=1,
            moe_layers=(0,),
            dispatch_width=shape["hidden"],
            gated=False,
            expert_dtype=dtype,
            attention=Attention(heads=8, score_width=128.0, projection_parameters=0, cache_bytes_per_token=0),
            **shape,
        ),
        cluster=plugin("topology", "nvlink_nodes")(nodes=1, gpus_per_node=8),
        parallel=Parallel(ep=8),
        workload=Workload(tokens_per_gpu=4096),
        routing=plugin("source", "uniform")(),
        exchange=plugin("exchange", "direct")(**EXCHANGES[library]),
    )
    spans = simulate(scenario, read_trace=read_trace, keep_spans=True).tables["spans"]
    mine = [spans.where((spans["phase"] != "attention") & (spans["direction"] == way)) for way in ("forward", "backward")]
    return tuple(1e3 * float(one["end_s"].max() - one["start_s"].min()) for one in mine)


def errors(dtype):
    """Return the relative errors of all cases of a dtype, forward and backward."""
    found = {}
    for case, told in FACTS["moe_perf"]["cases"].items():
        if case.endswith(dtype):
            for way, predicted in zip(("forward", "backward"), layer_ms(case), strict=True):
                found[case, way] = predicted / told[f"{way}_ms"] - 1.0
    return found


HERO = """
name: one MoE layer of EP 64
model:
  name: hero
  layers: 1
  moe_layers: [0]
  hidden: 3072
  dispatch_width: 3072
  experts: 192
  top_k: 4
  expert_width: 6272
  attention: {heads: 1, score_width: 128.0, projection_parameters: 0, cache_bytes_per_token: 0}
cluster: {kind: nvl_rack, gpus: 64, gpu: gb200-nvl72}
parallel: {ep: 64}
workload: {tokens_per_gpu: 65536, context: 1}
routing: {kind: balanced}
exchange: {kind: direct, deduplicate: false}
"""


def holding(sms):
    """Return what makes communication hold so many SMs; 0 for none."""
    return (f"exchange.communication_sms={sms}",) if sms else ()


@cache
def pair_of_chunks(sms=0, tokens=8192):
    """Return milliseconds of a pair of chunks on GPU 0: its span, its exchanges, what is hidden of them, and each phase by itself."""
    changed = (*holding(sms), f"workload.tokens_per_gpu={tokens}")
    scenario = read_scenario(DUALPIPE, file="dualpipe", folder=".", overrides=changed)
    spans = simulate(scenario, read_trace=read_trace, keep_spans=True).tables["spans"]
    spans = spans.where(spans["gpu"] == 0)
    # The first micro-batch backward beside the second one forward.
    begin = spans["start_s"][spans["microbatch"] == 1].min()
    end = spans["end_s"][spans["microbatch"] == 0].max()

    def busy(mask):
        start, stop = (np.clip(spans[name][mask], begin, end) for name in ("start_s", "end_s"))
        order = np.argsort(start)
        return 1e3 * covered(start[order], stop[order])

    exchanging, computing = spans["lane"] == "communication", spans["lane"] == "compute"
    found = {"span": 1e3 * (end - begin), "exchanges": busy(exchanging), "computing": busy(computing)}
    found["hidden"] = found["exchanges"] + found["computing"] - busy(exchanging | computing)
    for phase in ("attention", "gate", "shared", "experts", "dispatch", "combine"):
        for way in ("forward", "backward"):
            found[f"{phase} {way}"] = busy((spans["phase"] == phase) & (spans["direction"] == way))
    return found


@cache
def layer_with_and_without_overlap(sms=0, tokens=65536):
    """Return milliseconds of a layer of marin's EP 64 shape, without overlap and in two halves, and the share of exchanges saved."""

    def played(*changed):
        scenario = read_scenario(HERO, file="hero", folder=".", overrides=(f"workload.tokens_per_gpu={tokens}", *changed))
        return simulate(scenario, read_trace=read_trace).metrics

    plain, halves = played(), played("schedule.kind=two_batch", *holding(sms))
    return 1e3 * plain["step_time"].value, 1e3 * halves["step_time"].value, halves["overlap_realised"].value


def rows():
    """Return what was published beside what is predicted: source, quantity, published, predicted, unit, bound of the error in per cent."""
    found = []
    for dtype, bound in (("bf16", 16), ("fp8", 38)):
        for (case, way), error in errors(dtype).items():
            told = FACTS["moe_perf"]["cases"][case][f"{way}_ms"]
            found.append(("Megatron-Core moe_perf", f"{case}, {way}", told, told * (1 + error), "ms", bound))
    told = FACTS["dualpipe_trace"]
    # DeepSeek gives 20 of the 132 SMs to communication (arXiv:2412.19437, section 3.2.2).
    for sms, how, bounds in ((0, "no SMs held", (20, 35, 10, 25, 12)), (20, "20 SMs held", (10, 35, 10, 15, 8))):
        trace = pair_of_chunks(sms)
        computing = told["span_ms"] - told["communication_ms"] + told["hidden_ms"]
        kernels = told["communication_ms"] * (1 - told["notify_share"])
        found += [
            ("DeepSeek, EP 64 trace", f"forward beside backward chunk, {how}", told["span_ms"], trace["span"], "ms", bounds[0]),
            ("DeepSeek, EP 64 trace", f"exchanges, {how}", told["communication_ms"], trace["exchanges"], "ms", bounds[1]),
            ("DeepSeek, EP 64 trace", f"exchanges without notifying, {how}", kernels, trace["exchanges"], "ms", bounds[2]),
            ("DeepSeek, EP 64 trace", f"computing, at most, {how}", computing, trace["computing"], "ms", bounds[3]),
            ("DeepSeek, EP 64 trace", f"hidden, {how}", 100 * told["hidden_ms"] / told["communication_ms"],
             100 * trace["hidden"] / trace["exchanges"], "%", bounds[4]),
        ]  # fmt: skip
        found += [
            ("DeepSeek, EP 64 trace", f"{phase}, {how}", None, value, "ms", None)
            for phase, value in trace.items()
            if phase not in ("span", "exchanges", "computing", "hidden")
        ]
    told = FACTS["marin_overlap"]
    for sms, how in ((0, "no SMs held"), (20, "20 SMs held")):
        plain, halves, realised = layer_with_and_without_overlap(sms)
        what = f"gain of overlap, {how}"
        found.append(("marin, one layer of EP 64", what, told["measured"], plain / halves, "x", 10 if not sms else 3))
        found.append(("marin, one layer of EP 64", f"exchanges saved by overlap, {how}", 100 * told["realised"], 100 * realised, "%", None))
    found.append(
        ("Megatron-Bridge, Qwen3-30B-A3B", "a step without and with overlap", FACTS["qwen3_overlap"]["without_s"], None, "s", None)
    )
    return found


def main():
    found = rows()
    lines = []
    for source, what, told, predicted, unit, bound in found:
        said = "not published" if told is None else f"published {told:8.3f} {unit}"
        mine = "not predicted" if predicted is None else f"predicted {predicted:8.3f} {unit}"
        error = "" if told is None or predicted is None else f", {100 * (predicted / told - 1):+.1f} % (bound {bound} %)"
        lines.append(f"{source}: {what:48} {said}, {mine}{error}")
    sys.stdout.write("\n".join(lines) + "\n")
    if "--write" in sys.argv[1:]:
        names = ("source", "what", "published", "predicted", "unit", "bound_percent")
        plain = [
            {name: round(value, 4) if isinstance(value, float) else value for name, value in zip(names, row, strict=True)} for row in found
        ]
        PREDICTIONS.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
