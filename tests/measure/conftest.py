from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest

from moesim.facts.cluster import Cluster
from moesim.facts.contracts import Record
from moesim.facts.record import Table
from moesim.facts.scenario import Scenario


def _table(**columns: object) -> Table:
    return Table(columns={name: np.asarray(column) for name, column in columns.items()})


@pytest.fixture
def record() -> Record:
    """Two measured steps (3 and 4), two MoE layers, two GPUs, three experts; every number is chosen to be different."""
    tables = {
        "rebalances": _table(
            step=[4],
            decided_s=[3.0],
            planner_s=[0.1],
            layers=[2],
            copies=[3],
            bytes=[60.0],
            transfer_s=[0.4],
            stall_s=[0.5],
            in_place_step=[4],
        ),
        "steps": _table(
            step=[3, 4],
            start_s=[1.0, 3.0],
            step_time_s=[2.0, 4.0],
            tokens=[100, 100],
            dispatch_transfer_s=[0.1, 0.3],
            combine_transfer_s=[0.2, 0.4],
            waiting_s=[0.5, 2.0],
            expert_s=[0.6, 0.7],
            expert_slowest_s=[0.8, 1.2],
            attention_s=[0.25, 0.25],
            dense_s=[0.0, 0.0],
            gate_s=[0.01, 0.01],
            shared_s=[0.0, 0.0],
            gradient_s=[0.4, 0.0],
            gradient_exposed_s=[0.15, 0.0],
            exposed_communication_s=[0.9, 1.1],
            slowed_s=[0.06, 0.25],
            tensor_s=[0.0, 0.0],
            recompute_s=[0.3, 0.0],
            optimiser_s=[0.05, 0.0],
            hand_over_s=[0.02, 0.0],
            pipeline_s=[1.6, 0.0],
            bubble_s=[0.4, 0.0],
            unequal_ranks_s=[0.125, 0.5],
        ),
        "layers": _table(
            step=[3, 3, 4, 4],
            moe_layer=[0, 1, 0, 1],
            layer=[1, 2, 1, 2],
            tokens=[100, 100, 100, 100],
            routes=[200, 200, 200, 200],
            dropped=[10, 30, 0, 0],
            kept=[190, 170, 200, 200],
            padding=[10, 30, 0, 0],
            fully_dropped=[1, 4, 0, 0],
            capacity_rows=[240, 240, 400, 400],
            expert_max=[100.0, 150.0, 80.0, 100.0],
            expert_mean=[50.0, 50.0, 40.0, 50.0],
            rank_max=[120.0, 150.0, 100.0, 100.0],
            rank_mean=[100.0, 100.0, 100.0, 100.0],
            dispatch_bytes=[1000.0, 2000.0, 500.0, 700.0],
            combine_bytes=[1100.0, 2200.0, 600.0, 800.0],
            cross_node_bytes=[300.0, 400.0, 50.0, 70.0],
            dispatch_cross_node_bytes=[100.0, 150.0, 20.0, 30.0],
            dispatch_library_bytes=[600.0, 900.0, 240.0, 360.0],
            combine_library_bytes=[700.0, 1100.0, 300.0, 500.0],
            copies=[80, 120, 50, 50],
            nodes=[110, 130, 140, -1],
            idle_experts=[1, 0, 2, 3],
            stagnant_experts=[1, 1, 3, 3],
            idle_longest=[1, 0, 2, 1],
            load_cv=[0.5, 0.25, 1.0, 0.5],
            load_entropy=[0.75, 1.0, 0.5, 0.25],
            load_correlation=[math.nan, math.nan, 0.5, -0.25],
            source_information=[0.0, 0.5, 1.0, 0.0],
            domain_information=[0.5, 1.0, 0.25, math.nan],
            aux_loss=[1.5, 2.5, 1.0, 1.0],
            aux_loss_sequence=[2.0, 3.0, 1.0, 2.0],
            aux_loss_batch=[1.25, 1.75, 1.0, 1.0],
            aux_loss_device=[1.0, 1.5, 1.0, 1.0],
            router_z_loss=[4.0, 8.0, 2.0, 2.0],
        ),
        "experts": _table(
            moe_layer=[0, 0, 0, 1, 1, 1],
            layer=[1, 1, 1, 2, 2, 2],
            expert=[0, 1, 2, 0, 1, 2],
            routes=[6, 2, 0, 4, 4, 4],
            dropped=[0, 0, 0, 0, 0, 0],
        ),
        "ranks": _table(
            step=[3, 3, 3, 3, 4, 4, 4, 4],
            moe_layer=[0, 0, 1, 1, 0, 0, 1, 1],
            gpu=[0, 1, 0, 1, 0, 1, 0, 1],
            rows=[120, 80, 50, 150, 100, 100, 300, 100],
            padding=[0, 0, 0, 0, 0, 0, 0, 0],
        ),
        "gpus": _table(gpu=[0, 1], node=[0, 1], weight_bytes=[5.0e9, 5.0e9], peak_memory_bytes=[7.0e9, 9.0e9]),
        "links": _table(
            link=["a", "b"],
            link_class=["nic", "nic"],
            bandwidth_Bps=[100.0, 100.0],
            bytes=[60.0, 90.0],
            busy_s=[1.0, 1.0],
            utilisation=[0.2, 0.3],
            busy_utilisation=[0.6, 0.9],
        ),
        "collectives": _table(
            step=[3, 3, 4, 3],
            phase=["dispatch", "combine", "dispatch", "gradients"],
            moving_s=[0.5, 0.25, 0.0, 9.0],
            transfer_s=[0.5, 0.25, 0.0, 9.0],
            alone_s=[0.25, 0.25, 0.0, 1.0],
            port_bound_s=[0.25, 0.25, 0.0, 1.0],
            link_bound_s=[0.4, 0.2, 0.0, 1.0],
        ),
    }
    bounds = {"step_time_if_balanced": np.array([1.5, 2.5]), "step_time_if_no_communication": np.array([1.0, 2.0])}
    # No metric of ours looks at the scenario or the cluster.
    return Record(scenario=cast("Scenario", None), cluster=cast("Cluster", None), tables=tables, bounds=bounds)
