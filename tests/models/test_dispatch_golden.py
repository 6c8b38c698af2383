"""Outputs of SGLang and vLLM, and optima of the linear program of replica choice (see tests/golden/README.md)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from routings import world

from moesim.base.loads import balancedness_sglang
from moesim.base.registry import plugin
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.dispatch.lp_split import optimal_split, whole_rows
from moesim.models.dispatch.shared_ranks import dynamic_fill, shared_ranks, static_fill
from moesim.models.dispatch.static import static_tables

GOLDEN = Path(__file__).parents[1] / "golden"


def cases(name):
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]]


@pytest.fixture(scope="module")
def arrays():
    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return {name: load(name) for name in ("sglang_dispatch", "vllm_replica_choice", "lp_dispatch", "sglang_waterfill")}


def given(case, arrays):
    return {name.split("__")[-1]: array for name, array in arrays.items() if name.startswith(case["id"])}


def one_layer(phy2log, gpus):
    return Placement(expert_of_slot=phy2log[None], rank_of_slot=np.arange(len(phy2log)) // (len(phy2log) // gpus))


def on_nodes(setting, nodes):
    """The setting with its GPUs in so many nodes."""
    cluster = setting.cluster
    return replace(setting, cluster=replace(cluster, node_of=np.arange(cluster.gpus) // (cluster.gpus // nodes)))


def bound(dispatch, topk, phy2log, *, gpus, nodes=1, source=0):
    """The assignment when one source has all the tokens of a case."""
    experts = int(phy2log.max()) + 1
    setting = on_nodes(world(gpus=gpus, experts=experts, top_k=topk.shape[1], moe_layers=1), nodes)
    start = np.where(np.arange(gpus + 1) > source, len(topk), 0)
    routing = LayerRouting.of_tokens(topk.astype(np.int32), start, experts)
    none = np.zeros_like(routing.counts)
    kept = Kept(routing=routing, dropped=none, padding=none)
    return dispatch.begin(setting)(kept, one_layer(phy2log, gpus), step=0, moe_layer=0)


@pytest.mark.parametrize("case", cases("sglang_dispatch"))
def test_static_and_dynamic_choose_as_sglang(case, arrays):
    found, params = given(case, arrays["sglang_dispatch"]), case["params"]
    gpus, nodes = params["num_gpus"], params["num_nodes"]
    tables = static_tables(
        one_layer(found["phy2log"], gpus), np.arange(gpus) // (gpus // nodes), ranks=gpus, experts=params["num_logical"], draw_seed=42
    )
    np.testing.assert_array_equal(tables[0], found["rank_dispatch"])
    static = bound(plugin("dispatch", "static")(), found["topk_logical"], found["phy2log"], gpus=gpus, nodes=nodes)
    np.testing.assert_array_equal(static.slots, found["topk_physical_static_rank0"])

    dynamic = bound(plugin("dispatch", "dynamic")(by="row"), found["topk_logical"], found["phy2log"], gpus=gpus)
    np.testing.assert_array_equal(dynamic.slots, found["topk_physical_dynamic"])
    counts = dynamic.rows_at()[0]
    np.testing.assert_array_equal(counts, found["gpu_count_dynamic"])
    np.testing.assert_allclose(balancedness_sglang(counts[None]), found["utilization_dynamic"], rtol=1e-5)


@pytest.mark.parametrize("case", cases("vllm_replica_choice"))
def test_token_hash_chooses_as_vllm(case, arrays):
    found, params = given(case, arrays["vllm_replica_choice"]), case["params"]
    gpus, real = params["num_gpus"], params["num_unpadded"]
    dispatch = plugin("dispatch", "token_hash")()
    whole = bound(dispatch, found["topk_logical"], found["phy2log"], gpus=gpus)
    np.testing.assert_array_equal(whole.slots, found["topk_physical"])
    # vLLM maps the rows that fill a captured batch, and does not count them.
    counted = bound(dispatch, found["topk_logical"][:real], found["phy2log"], gpus=gpus)
    np.testing.assert_array_equal(counted.slot_counts[0], found["counts"])
    np.testing.assert_array_equal(counted.rows_at()[0], found["gpu_counts"])


@pytest.mark.parametrize("case", cases("lp_dispatch"))
def test_lp_reaches_the_optimum(case, arrays):
    found, gpus = given(case, arrays["lp_dispatch"]), case["params"]["num_gpus"]
    load, phy2log = found["counts"], found["phy2log"]
    rank = np.arange(len(phy2log)) // (len(phy2log) // gpus)
    best = optimal_split(load, phy2log, rank, ranks=gpus)
    np.testing.assert_allclose(best.most, found["optimal_max_load"], rtol=1e-6)
    # Feasible: nothing negative, every expert's load, and no rank above the most.
    assert best.rows.min() >= 0
    np.testing.assert_allclose(np.bincount(phy2log, weights=best.rows, minlength=len(load)), load, rtol=1e-9, atol=1e-6)
    on_rank = np.bincount(rank, weights=best.rows, minlength=gpus)
    assert on_rank.max() <= found["optimal_max_load"] * (1 + 1e-6)

    whole = whole_rows(best.rows, load, phy2log)
    np.testing.assert_array_equal(np.bincount(phy2log, weights=whole, minlength=len(load)), load)
    replicas = np.bincount(rank, weights=np.bincount(phy2log)[phy2log] > 1, minlength=gpus)
    assert (np.bincount(rank, weights=whole) < on_rank + np.maximum(replicas, 1e-6)).all()


@pytest.mark.parametrize("case", cases("lp_dispatch"))
def test_the_plugin_lands_within_a_row_per_replica_of_the_optimum(case, arrays):
    found, gpus = given(case, arrays["lp_dispatch"]), case["params"]["num_gpus"]
    phy2log, load = found["phy2log"], found["counts"]
    counts = np.concatenate([load[None], np.zeros((gpus - 1, len(load)), dtype=int)])
    routing = LayerRouting(experts=len(load), token_start=np.where(np.arange(gpus + 1) > 0, load.sum(), 0), counts=counts)
    none = np.zeros_like(routing.counts)
    setting = world(gpus=gpus, experts=len(load), moe_layers=1)
    dispatch = plugin("dispatch", "lp")().begin(setting)
    rows = dispatch(Kept(routing=routing, dropped=none, padding=none), one_layer(phy2log, gpus), step=0, moe_layer=0).rows_at()[0]
    assert rows.sum() == load.sum()
    assert found["optimal_max_load"] - 1e-6 <= rows.max() < found["optimal_max_load"] + len(phy2log) // gpus


@pytest.mark.parametrize("case", cases("sglang_waterfill"))
def test_waterfill_sends_shared_rows_where_sglang_does(case, arrays):
    found, params = given(case, arrays["sglang_waterfill"]), case["params"]
    ids, source, experts, ranks = found["topk_ids"], params["source_rank"], params["num_experts"], params["world_size"]
    known = ids[ids >= 0]
    routed = np.bincount(known // (experts // ranks), minlength=ranks)
    np.testing.assert_array_equal(routed, found["local_routed"])
    if params["static"]:
        fill = static_fill(found["rank_load"], params["topk"])
        np.testing.assert_array_equal(fill.load, routed)
    else:
        # rank_load is rows plus tokens of all ranks, each of which has as many tokens as this one.
        tokens = np.full(ranks, params["num_tokens"])
        fill = dynamic_fill(found["rank_load"] - tokens, tokens, params["topk"])
        np.testing.assert_array_equal(fill.load, found["rank_load"])
        assert fill.target == params["target_total"]
    assert fill.anywhere == params["allow_all_ranks"]
    shared = shared_ranks(np.where(ids >= 0, ids // (experts // ranks), -1), fill, source=source)
    np.testing.assert_array_equal(shared, found["shared_rank"])
    np.testing.assert_array_equal(np.bincount(shared[shared >= 0], minlength=ranks), found["shared_per_rank"])


# In the others a rank knows what all send, which the cases do not hold.
@pytest.mark.parametrize("case", [case for case in cases("sglang_waterfill") if case.values[0]["params"]["static"]])
def test_the_plugin_binds_shared_rows_as_sglang_does(case, arrays):
    found, params = given(case, arrays["sglang_waterfill"]), case["params"]
    ids, source, experts, ranks = found["topk_ids"], params["source_rank"], params["num_experts"], params["world_size"]
    each = experts // ranks
    setting = world(gpus=ranks, experts=experts, top_k=ids.shape[1], moe_layers=1, shared_experts=1, shared_width=4)
    start = np.where(np.arange(ranks + 1) > source, len(ids), 0)
    routing = LayerRouting.of_tokens(ids.astype(np.int32), start, experts)
    none = np.zeros_like(routing.counts)
    placement = Placement(expert_of_slot=np.arange(experts)[None], rank_of_slot=np.arange(experts) // each)
    dispatch = plugin("dispatch", "waterfill")().begin(setting)
    rows = dispatch(Kept(routing=routing, dropped=none, padding=none), placement, step=0, moe_layer=0)
    routed = (ids >= 0).any(axis=1)
    np.testing.assert_array_equal((rows.slots[:, -1] - experts)[routed], found["shared_rank"][routed])
    # SGLang numbers a rank's shared expert after its routed ones.
    by_rank = np.where(ids >= 0, ids + ids // each, -1)
    np.testing.assert_array_equal(by_rank, found["expanded_ids"][:, :-1])
    np.testing.assert_array_equal((rows.slots[:, -1] - experts + 1)[routed] * (each + 1) - 1, found["expanded_ids"][routed, -1])
