"""Groups of GPUs that share no link: each as if it were alone in the world, however many there are."""

import dataclasses

import numpy as np
import pytest
from worlds import play, small_model

from moesim.base.errors import LawBroken
from moesim.base.registry import plugin
from moesim.engine.machine import Machine
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Scenario, Workload
from moesim.facts.traffic import Traffic
from moesim.models.topology.nvlink_nodes import NvlinkNodes

RANKS = 4
PER_GROUP = ("first_arrival_s", "last_arrival_s", "end_s", "moving_s", "transfer_s", "alone_s", "port_bound_s", "link_bound_s")
COUNTED = ("bytes", "cross_node_bytes", "layer", "moe_layer", "phase", "direction")


@dataclasses.dataclass(frozen=True)
class SameEverywhere:
    """The same skewed tokens for every group."""

    kind = "same_everywhere"

    def begin(self, setting):
        groups = setting.gpus // RANKS

        def draw(step):
            layers = []
            for layer in range(len(setting.model.moe_layers)):
                rng = np.random.default_rng([step, layer])
                ids = np.array([rng.permutation(np.r_[0, 0, 0, 1 : setting.model.experts])[:2] for _ in range(RANKS * 24)]) % 8
                start = np.arange(groups * RANKS + 1) * 24
                layers.append(LayerRouting.of_tokens(np.tile(ids, (groups, 1)), start, setting.model.experts))
            return Routing(layers=layers)

        return draw


def world(nodes, **more):
    parts = {
        "name": "groups",
        "steps": 2,
        "model": small_model(8, 2),
        "cluster": NvlinkNodes(nodes=nodes, gpus_per_node=RANKS),
        "parallel": Parallel(ep=RANKS),
        "workload": Workload(phase="prefill", tokens_per_gpu=24),
        "routing": SameEverywhere(),
    }
    return Scenario(**{**parts, **more})


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("exchange", ["direct", "low_latency", "hierarchical"])
def test_l10_groups_on_nodes_of_their_own_fare_like_one_alone(exchange, processes, monkeypatch):
    # Three nodes hold a group each, which never uses a network card: all three do what the one of a single node does.
    if processes:
        monkeypatch.setattr(Machine, "_chain", lambda self, load: None)
    one, three = (play(world(nodes, exchange=plugin("exchange", exchange)())) for nodes in (1, 3))
    alone, together = one.tables["collectives"], three.tables["collectives"]
    assert len(together) == 3 * len(alone) > 0
    for group in range(3):
        mine = together.where(together["group"] == group)
        for name in COUNTED:
            assert mine[name].tolist() == alone[name].tolist(), name
        for name in PER_GROUP:
            np.testing.assert_allclose(mine[name], alone[name], rtol=1e-9, atol=1e-15, err_msg=name)
        pairs = three.tables["traffic"]
        pairs = pairs.where(pairs["source"] // RANKS == group)
        assert (pairs["destination"] // RANKS == group).all()
        assert pairs["dispatch_bytes"].tolist() == one.tables["traffic"]["dispatch_bytes"].tolist()
    for name in ("step_time", "drop_rate", "step_time_if_no_communication", "step_time_if_balanced"):
        np.testing.assert_allclose(three.samples[name], one.samples[name], rtol=1e-9, err_msg=name)


@dataclasses.dataclass(frozen=True)
class Strays:
    """The direct exchange, and a byte for somebody of another group."""

    kind = "strays"

    def begin(self, setting):
        carry = plugin("exchange", "direct")().begin(setting)

        def more(stage):
            size = np.array(stage.bytes)
            size[1, -1] = 1.0
            return Traffic(bytes=size, copies=stage.copies, padding=stage.padding)

        def strayed(assignment, *, direction):
            exchange = carry(assignment, direction=direction)
            return dataclasses.replace(exchange, dispatch=tuple(more(stage) for stage in exchange.dispatch))

        return strayed


def test_l2_bytes_to_another_group_are_refused_because_nobody_would_carry_them():
    play(world(1, exchange=Strays()))  # one group of all: GPU 3 is a member
    with pytest.raises(LawBroken, match=r"dispatch of the exchange has bytes from GPU 1 to GPU 7, which are in different expert-parallel"):
        play(world(2, exchange=Strays()))


@dataclasses.dataclass(frozen=True)
class Plain:
    """The direct exchange, with whole matrices as somebody's own exchange may return them."""

    kind = "plain"

    def begin(self, setting):
        carry = plugin("exchange", "direct")().begin(setting)

        def plain(assignment, *, direction):
            exchange = carry(assignment, direction=direction)
            stages = {way: tuple(dataclasses.replace(stage) for stage in getattr(exchange, way)) for way in ("dispatch", "combine")}
            assert {type(stage) for way in stages.values() for stage in way} == {Traffic}
            return dataclasses.replace(exchange, **stages)

        return plain


@pytest.mark.parametrize("workload", [Workload(phase="prefill", tokens_per_gpu=24), Workload(phase="training", tokens_per_gpu=24)])
@pytest.mark.parametrize("schedule", ["sequential", "two_batch"])
def test_whole_matrices_give_the_same_tables_to_the_last_bit(schedule, workload):
    if schedule == "two_batch" and workload.phase == "training":
        schedule = "one_f_one_b"
    more = {"workload": workload, "schedule": plugin("schedule", schedule)(), "routing": plugin("source", "power_law")(alpha=1.0)}
    one, other = (play(world(3, exchange=exchange, **more)) for exchange in (plugin("exchange", "direct")(), Plain()))
    for name, table in one.tables.items():
        for column, values in table.columns.items():
            np.testing.assert_array_equal(values, other.tables[name][column], err_msg=f"{name}.{column}")
