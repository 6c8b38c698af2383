"""Laws L10 (scaling) and L12 (no crystal ball) on whole runs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import LAWS, RELATIVE, no_trace, play, scenarios, small_model

from moesim.base.registry import plugin
from moesim.engine.simulate import simulate
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.topology.one_switch import OneSwitch

GPU_RATES = ("memory_bandwidth", "nvlink", "nic")
OWN_RATES = ("bandwidth", "nvlink", "nic", "link")


def at_once(scenario):
    """The same world without latencies and launches, its efficiencies written down: a changed GPU is no preset and has no own ones."""
    names = [item.name for item in dataclasses.fields(scenario.cluster)]
    none = {name: 0.0 for name in names if name.endswith("latency")}
    full = {name: 0.5 for name in names if name.endswith("efficiency")}
    return dataclasses.replace(
        scenario,
        cluster=dataclasses.replace(scenario.cluster, **none, **full, **rewired(scenario.cluster, latency=0.0)),
        exchange=dataclasses.replace(scenario.exchange, launch=0.0),
        compute=plugin("compute", "grouped_gemm")(launch=0.0, dense_launch=0.0),
    )


def rewired(cluster, factor=1.0, **changes):
    """What to replace where every link is written down: bandwidths times the factor, and other changes."""
    wiring = getattr(cluster, "wiring", None)
    if wiring is None:
        return {}
    links = tuple(dataclasses.replace(link, bandwidth=link.bandwidth * factor, **changes) for link in wiring.links)
    return {"wiring": dataclasses.replace(wiring, links=links)}


def faster(scenario, factor):
    """Every bandwidth and every rate of arithmetic times the factor."""
    gpu = scenario.cluster.gpu
    rates = {name: getattr(gpu, name) * factor for name in GPU_RATES}
    gpu = dataclasses.replace(gpu, flops={dtype: rate * factor for dtype, rate in gpu.flops.items()}, **rates)
    written = {name: value * factor for name in OWN_RATES if (value := getattr(scenario.cluster, name, None)) is not None}
    more = rewired(scenario.cluster, factor)
    return dataclasses.replace(scenario, cluster=dataclasses.replace(scenario.cluster, gpu=gpu, **written, **more))


def in_order(spans):
    """Spans of two runs side by side: those of equal instants may have been written down in another order."""
    keys = ("phase", "direction", "moe_layer", "layer", "gpu", "step")
    return np.lexsort([spans[name] for name in keys])


@LAWS
@given(scenarios(), st.sampled_from([0.125, 0.3, 2.0, 3.7, 1000.0]))
def test_l10_all_rates_times_c_divide_every_span_by_c(scenario, factor):
    slow = at_once(scenario)
    one, other = (play(world).tables["spans"] for world in (slow, faster(slow, factor)))
    left, right = in_order(one), in_order(other)
    last = one["end_s"].max()
    assert last > 0
    for name in ("start_s", "end_s"):
        np.testing.assert_allclose(other[name][right] * factor, one[name][left], rtol=RELATIVE, atol=RELATIVE * last)
    np.testing.assert_array_equal(other["bytes"][right], one["bytes"][left])


@dataclass(frozen=True)
class Relabelled:
    """What another source draws, with the ranks of every group called by new names, and their experts with them."""

    inner: Any
    ranks: tuple[int, ...]
    experts: int
    kind = "relabelled"

    def begin(self, setting):
        draw = self.inner.begin(setting)
        return lambda step: Routing(layers=[self.layer(layer) for layer in draw(step).layers])

    def layer(self, layer):
        ep, each = len(self.ranks), self.experts // len(self.ranks)
        expert = np.array([self.ranks[old // each] * each + old % each for old in range(self.experts)])
        gpus = layer.gpus
        new = np.array([gpu // ep * ep + self.ranks[gpu % ep] for gpu in range(gpus)])
        old = np.argsort(new)  # who stood where the tokens of each new GPU stand
        rows = np.concatenate([np.arange(layer.token_start[gpu], layer.token_start[gpu + 1]) for gpu in old])
        start = np.concatenate([[0], np.cumsum(np.diff(layer.token_start)[old])])
        weights = None if layer.weights is None else layer.weights[rows]
        return LayerRouting.of_tokens(expert[layer.ids[rows]], start, self.experts, weights=weights)


@LAWS
@given(st.data())
def test_l10_new_names_for_the_gpus_of_one_switch_leave_all_times_as_they_were(data):
    # System: all GPUs alike, experts in equal blocks, nothing dropped. Expectation: GPU g is busy exactly when new(g) is with new names.
    ep, groups = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 2))
    experts = ep * data.draw(st.integers(1, 3))
    ranks = tuple(data.draw(st.permutations(range(ep))))
    source = plugin("source", "power_law")(alpha=1.2)
    exchange = plugin("exchange", "direct")(start=data.draw(st.sampled_from(["pairwise", "barrier"])))
    scenario = Scenario(
        name="names",
        seed=data.draw(st.integers(0, 1000)),
        steps=2,
        model=small_model(experts, data.draw(st.integers(1, min(experts, 4)))),
        cluster=OneSwitch(gpus=ep * groups),
        parallel=Parallel(ep=ep),
        workload=Workload(tokens_per_gpu=data.draw(st.integers(1, 40))),
        routing=source,
        exchange=exchange,
    )
    renamed = dataclasses.replace(scenario, routing=Relabelled(source, ranks, experts))
    one, other = (play(world).tables for world in (scenario, renamed))
    np.testing.assert_allclose(other["steps"]["step_time_s"], one["steps"]["step_time_s"], rtol=RELATIVE)
    new = np.array([gpu // ep * ep + ranks[gpu % ep] for gpu in range(ep * groups)])
    np.testing.assert_array_equal(other["gpus"]["rows"][new], one["gpus"]["rows"])
    last = one["spans"]["end_s"].max()
    for gpu in range(ep * groups):
        mine, theirs = one["spans"].where(one["spans"]["gpu"] == gpu), other["spans"].where(other["spans"]["gpu"] == new[gpu])
        for name in ("start_s", "end_s"):
            np.testing.assert_allclose(np.sort(theirs[name]), np.sort(mine[name]), rtol=RELATIVE, atol=RELATIVE * last)


@dataclass(frozen=True)
class Diary:
    """A placement or a source that does what another does, and writes down when it was asked and what it was shown."""

    inner: Any
    pages: list[tuple[str, Any]] = field(default_factory=list, compare=False)

    @property
    def kind(self):
        return self.inner.kind


class SpyingPlacement(Diary):
    def begin(self, setting):
        plan = self.inner.begin(setting)

        def planned(view):
            self.pages.append(("placement", view))
            return plan(view)

        return planned


class SpiedSource(Diary):
    def begin(self, setting):
        draw = self.inner.begin(setting)

        def drawn(step):
            routing = draw(step)
            self.pages.append(("source", np.array([layer.counts.sum(axis=0) for layer in routing.layers])))
            return routing

        return drawn


@pytest.mark.parametrize("steps", [1, 3])
def test_l12_a_placement_is_asked_before_the_tokens_of_its_step_are_drawn_and_sees_only_earlier_ones(steps):
    # System: a placement and a source that write into one diary. Expectation: each page of the placement comes before the page of the step
    # it plans, and shows the loads of the steps on the pages before, no more.
    pages: list[tuple[str, Any]] = []
    scenario = Scenario(
        name="spy",
        steps=steps,
        model=small_model(8, 2),
        cluster=OneSwitch(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=16),
        routing=SpiedSource(plugin("source", "uniform")(), pages),
        policy=Policy(placement=SpyingPlacement(plugin("placement", "contiguous")(), pages)),
    )
    simulate(scenario, read_trace=no_trace)
    assert pages[0][0] == "placement"
    assert sum(who == "source" for who, _ in pages) == steps
    seen: list[np.ndarray] = []
    for who, what in pages:
        if who == "source":
            seen.append(what)
        else:
            assert what.step == len(seen)
            assert what.loads.shape == (len(seen), 2, 8)
            assert all((shown == drawn).all() for shown, drawn in zip(what.loads, seen, strict=True))
