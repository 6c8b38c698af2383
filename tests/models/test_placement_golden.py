"""Outputs of the placement planners that frameworks use (see tests/golden/README.md).

Replicas of one expert carry equal load, so a layout is never unique: replica counts and sorted loads of ranks are compared.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moesim.models.placement.eplb_plan import plan_eplb, plan_global
from moesim.models.placement.eplb_sglang_plan import plan_deepseek_vec, plan_elasticity_aware
from moesim.models.placement.eplb_trtllm_plan import plan_trtllm
from moesim.models.placement.eplb_vllm_plan import plan_vllm
from moesim.models.placement.flexmoe_plan import plan_flexmoe
from moesim.models.placement.laer_plan import LaerCost, every_expert_in_turn, plan_laer, split_to_nearest
from moesim.models.placement.llep_plan import plan_llep, rows_by_source
from moesim.models.placement.migration import copies_needed, in_rounds
from moesim.models.placement.shadow_plan import plan_shadows

GOLDEN = Path(__file__).parents[1] / "golden"
RELATIVE = 1e-5


@cache
def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def cases(name):
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]]


def of(name, case):
    return {key.split("__")[-1]: array for key, array in arrays(name).items() if key.startswith(case["id"] + "__")}


def check_plan(plan, loads, count, rank_load, ranks):
    np.testing.assert_array_equal(plan.logical_count, count)
    np.testing.assert_allclose(np.sort(plan.rank_loads(loads, ranks), axis=1), np.sort(rank_load, axis=1), rtol=RELATIVE)
    assert len(plan.rank_of_slot) == plan.physical_to_logical_map.shape[1] == count.sum(axis=1)[0]


@pytest.mark.parametrize("case", cases("deepseek_eplb"))
def test_deepseek(case):
    given, params = of("deepseek_eplb", case), case["params"]
    plan = plan_eplb(
        given["weight"], slots=params["num_replicas"], gpus=params["num_gpus"], nodes=params["num_nodes"], groups=params["num_groups"]
    )
    check_plan(plan, given["weight"], given["logcnt"], given["gpu_load"], params["num_gpus"])
    loads = plan.rank_loads(given["weight"], params["num_gpus"])
    mean = loads.mean(axis=1)
    np.testing.assert_allclose(loads.max(axis=1) / np.where(mean, mean, 1), given["max_over_mean"] * (mean > 0), rtol=RELATIVE)
    # Replicas of each expert: as many slots as in the reference, each of which holds the expert.
    slots = plan.logical_to_physical_map
    np.testing.assert_array_equal((slots >= 0).sum(axis=2), (given["log2phy"] >= 0).sum(axis=2))
    layer, expert, number = np.nonzero(slots >= 0)
    np.testing.assert_array_equal(plan.physical_to_logical_map[layer, slots[layer, expert, number]], expert)


@pytest.mark.parametrize("case", cases("vllm_eplb"))
def test_vllm(case):
    given, params = of("vllm_eplb", case), case["params"]
    ranks = params["num_ranks"]
    plan = plan_vllm(
        given["weight"],
        slots=params["num_replicas"],
        gpus=ranks,
        nodes=params["num_nodes"],
        groups=params["num_groups"],
        old=given.get("old_phy2log"),
    )
    check_plan(plan, given["weight"], given["logcnt"], given["gpu_load"], ranks)
    if "old_phy2log" in given:
        # Moves and rounds depend on the layout: take vLLM's own.
        copies = [copies_needed(old, new, plan.rank_of_slot) for old, new in zip(given["old_phy2log"], given["phy2log"], strict=True)]
        assert [len(of_layer) for of_layer in copies] == given["n_moves"].tolist()
        np.testing.assert_array_equal(in_rounds(copies[0]), given["batches_layer0"])


@pytest.mark.parametrize("case", cases("sglang_eplb"))
def test_sglang(case):
    given, params = of("sglang_eplb", case), case["params"]
    loads = given["tokens_per_expert"]
    slots = params["num_physical_experts"]
    ranks = slots // params["num_local_physical_experts"]
    sizes = {"slots": slots, "gpus": ranks, "nodes": params["num_nodes"], "groups": params["num_groups"] or 1}
    if params["algorithm"] == "deepseek":
        plan = plan_global(loads.sum(axis=0).astype(float), slots=slots, gpus=ranks)
    elif params["algorithm"] == "vec":
        plan = plan_deepseek_vec(loads, hierarchical=params["hierarchical"], **sizes)
    else:
        live = given["active_ranks"].astype(bool)
        plan = plan_elasticity_aware(loads, dead_ranks=np.flatnonzero(~live).tolist(), **sizes)
        np.testing.assert_array_equal(plan.logical_count, given["logcnt"])
        carried = plan.rank_loads(loads.sum(axis=0), ranks)
        assert not carried[:, ~live].any()
        np.testing.assert_allclose(np.sort(carried[:, live], axis=1), np.sort(given["gpu_load_active"], axis=1), rtol=RELATIVE)
        return
    check_plan(plan, loads.sum(axis=0), given["logcnt"], given["gpu_load"], ranks)


@pytest.mark.parametrize("case", cases("trtllm_eplb"))
def test_trtllm(case):
    given, params = of("trtllm_eplb", case), case["params"]
    plan = plan_trtllm(given["load"], slots=params["num_slots"], gpus=params["ep_size"])
    check_plan(plan, given["load"], given["replica_count"], given["rank_load"], params["ep_size"])
    # Its ties are defined, so the layout is too.
    np.testing.assert_array_equal(plan.physical_to_logical_map, given["phy2log"])


@pytest.mark.parametrize("case", cases("llep_plan"))
def test_llep(case):
    given, params = of("llep_plan", case), case["params"]
    ranks = params["ep_size"]
    plan = plan_llep(given["expert_counts"], ranks=ranks, alpha=params["max_tokens_factor"], least_rows=params["min_tokens_per_gemm"])
    np.testing.assert_array_equal(plan.parts, given["plan"])
    np.testing.assert_array_equal(plan.transfers, given["transfers"])
    np.testing.assert_array_equal(plan.loads, given["gpu_loads"])
    rows = np.random.default_rng(1).multinomial(given["expert_counts"], [1 / ranks] * ranks).T
    by_source = rows_by_source(rows, plan)
    np.testing.assert_array_equal(by_source.sum(axis=0), plan.parts[:, 3] - plan.parts[:, 2])
    totals = np.zeros_like(rows)
    np.add.at(totals.T, plan.parts[:, 0], by_source.T)
    np.testing.assert_array_equal(totals, rows)


@pytest.mark.parametrize("case", cases("fastermoe_shadow"))
def test_fastermoe(case):
    given, width = of("fastermoe_shadow", case), case["params"]["d_model"]
    area, network = 2 * width**2, 50e9 / 8
    shadowed, latency = plan_shadows(
        given["lec"].sum(axis=0),
        compute=4 * area / 11.5e12,
        row_transfer=4 * width / network,
        weight_transfer=2 * area * 4 / network,
    )
    np.testing.assert_array_equal(shadowed, given["mask_paper"].astype(bool))
    assert latency == pytest.approx(case["predicted_latency_paper"], rel=RELATIVE)


def slots_of(held):
    return np.array([np.repeat(np.arange(held.shape[1]), row) for row in held])


@pytest.mark.parametrize("case", cases("laer_planner"))
def test_laer_and_flexmoe(case):
    given, params = of("laer_planner", case), case["params"]
    nodes = params["n_device"] // params["gpus_per_node"]
    rows = given["E"]
    start = every_expert_in_turn(params["n_device"], params["n_expert"], params["C_e"])
    np.testing.assert_array_equal(slots_of(start), given["default"])
    plans = {"default": start, "laer": plan_laer(rows, slots=params["C_e"], nodes=nodes)}
    if "flexmoe" in given:
        plans["flexmoe"] = plan_flexmoe(rows, start, nodes=nodes)
    for name, held in plans.items():
        np.testing.assert_array_equal(slots_of(held), given[name])
        split = split_to_nearest(rows, held, nodes)
        np.testing.assert_array_equal(split.sum(axis=(0, 1)), given[f"load_{name}"])
        np.testing.assert_array_equal(split.sum(axis=2), rows)
        # The reference's own cost counts remainders twice.
        twice = LaerCost().seconds(split_to_nearest(rows, held, nodes, extra=True), nodes)
        assert twice == pytest.approx(case[f"cost_{name}"], rel=RELATIVE)
