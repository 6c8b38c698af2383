"""Small random worlds in which every slot is filled, and how to run them."""

from functools import lru_cache

from examples import examples
from hypothesis import strategies as st
from strategies import every_topology

from moesim.base.registry import plugin
from moesim.engine.simulate import simulate
from moesim.facts.model import Attention, MoeModel
from moesim.facts.record import Result
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload

RELATIVE = 1e-9  # times are sums of at most some thousand floats, each rounded to 1e-16 of the whole
LAWS = examples(25)


def no_trace(path: str) -> None:
    raise AssertionError(f"no scenario here reads {path}")


@lru_cache
def small_model(experts: int, top_k: int, layers: int = 3) -> MoeModel:
    """A dense layer, then MoE layers."""
    return MoeModel(
        name="small",
        layers=layers,
        moe_layers=tuple(range(1, layers)),
        hidden=64,
        dense_width=128,
        experts=experts,
        top_k=top_k,
        expert_width=32,
        shared_experts=1,
        shared_width=32,
        dispatch_width=64,
        attention=Attention(heads=4, score_width=16.0, projection_parameters=4 * 64 * 64, cache_bytes_per_token=256),
    )


@st.composite
def scenarios(draw) -> Scenario:
    """A world of up to 24 GPUs in which every slot is filled by some plug-in."""
    cluster = draw(every_topology())
    gpus = cluster.build().gpus
    ep = draw(st.sampled_from([width for width in range(1, gpus + 1) if gpus % width == 0]))
    experts = ep * draw(st.integers(1, 3))
    top_k = draw(st.integers(1, min(experts, 4)))
    source = draw(st.sampled_from([("uniform", {}), ("power_law", {"alpha": 1.2}), ("router", {"scale": 0.5}), ("balanced", {})]))
    rules = [("dropless", {}), ("megatron", {"factor": 1.0}), ("megatron", {"factor": 1.2, "pad_to_capacity": True})]
    rule = draw(st.sampled_from([*rules, ("deepspeed", {"factor": 1.0, "min_capacity": 1})]))
    exchange = {"deduplicate": draw(st.booleans()), "start": draw(st.sampled_from(["pairwise", "barrier"]))}
    return Scenario(
        name="law",
        seed=draw(st.integers(0, 1000)),
        steps=2,
        warmup=draw(st.integers(0, 1)),
        model=small_model(experts, top_k),
        cluster=cluster,
        parallel=Parallel(ep=ep),
        workload=Workload(phase=draw(st.sampled_from(["training", "prefill", "decode"])), tokens_per_gpu=draw(st.integers(1, 40))),
        routing=plugin("source", source[0])(**source[1]),
        exchange=plugin("exchange", "direct")(**exchange),
        policy=Policy(
            capacity=plugin("capacity", rule[0])(**rule[1]),
            placement=plugin("placement", draw(st.sampled_from(["contiguous", "round_robin"])))(),
        ),
    )


def play(scenario: Scenario, **more) -> Result:
    return simulate(scenario, read_trace=no_trace, keep_spans=True, **more)
