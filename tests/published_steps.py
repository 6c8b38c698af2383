"""Predictions of steps that others published, with shipped defaults; ``python tests/published_steps.py`` prints all of them."""

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

FACTS = json.loads((Path(__file__).parent / "data" / "published_steps.json").read_text(encoding="utf-8"))
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


def pair_of_chunks():
    """Return milliseconds of the pair, of its exchanges, and of those that something is computed beside, on GPU 0."""
    scenario = read_scenario(DUALPIPE, file="dualpipe", folder=".")
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
    hidden = busy(exchanging) + busy(computing) - busy(exchanging | computing)
    return 1e3 * (end - begin), busy(exchanging), hidden


def main():
    lines = []
    for dtype in ("bf16", "fp8"):
        found = errors(dtype)
        for (case, way), error in found.items():
            told = FACTS["moe_perf"]["cases"][case][f"{way}_ms"]
            lines.append(f"{case:30} {way:9} published {told:7.2f} ms, predicted {told * (1 + error):7.2f} ms, {error:+.0%}")
        lines.append(f"{dtype}: mean absolute error {np.abs(list(found.values())).mean():.1%}, bias {np.mean(list(found.values())):+.1%}")
    span, exchange, hidden = pair_of_chunks()
    told = FACTS["dualpipe_trace"]
    lines.append(f"pair of chunks: published {told['span_ms']} ms, predicted {span:.1f} ms")
    lines.append(f"  exchange: published {told['communication_ms']} ms, predicted {exchange:.1f} ms")
    lines.append(f"  hidden: published {told['hidden_ms'] / told['communication_ms']:.0%}, predicted {hidden / exchange:.0%}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
