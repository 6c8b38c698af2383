"""Whole runs under capacity rules that drop on arrival or send routes elsewhere: what travels, what is computed, what is caught."""

import dataclasses

import numpy as np
import pytest
from worlds import no_trace, small_model

from moesim.base.errors import FidelityError, LawBroken
from moesim.base.registry import plugin
from moesim.engine.check import check
from moesim.engine.simulate import simulate
from moesim.facts.routing import Kept
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.topology.one_switch import OneSwitch


def run(capacity, *, source="router", **policy):
    return simulate(scenario(capacity, source=source, **policy), read_trace=no_trace)


def scenario(capacity, *, source="router", **policy):
    options = {"router": {"scale": 1.0, "scores": True}}.get(source, {})
    return Scenario(
        name="drops",
        seed=3,
        steps=2,
        model=small_model(8, 2),
        cluster=OneSwitch(gpus=8),
        parallel=Parallel(ep=4),
        workload=Workload(phase="training", tokens_per_gpu=64),
        routing=plugin("source", source)(**options),
        policy=Policy(capacity=capacity, **policy),
    )


def rule(kind, **keys):
    return plugin("capacity", kind)(**keys)


@pytest.fixture(scope="module")
def dropless():
    return run(rule("dropless"))


@pytest.mark.parametrize("capacity", [rule("megablocks"), rule("hybrid_ep", factor=1.0), rule("deepseek_v2"), rule("dmoe")])
def test_what_is_dropped_on_arrival_has_travelled(capacity, dropless):
    result = run(capacity)
    for column in ("dispatch_bytes", "combine_bytes", "copies", "routes"):
        np.testing.assert_array_equal(result.tables["layers"][column], dropless.tables["layers"][column])
    assert (result.tables["layers"]["dropped"].sum() > 0) == (capacity.kind != "dmoe")


def test_megablocks_computes_its_capacity_on_every_gpu_whatever_comes(dropless):
    result = run(rule("megablocks"))
    # C = int(1.0 x 2 x 64 x 4 / 8) = 64 rows of each of two experts.
    assert set(result.tables["ranks"]["rows"].tolist()) == {128}
    layers = result.tables["layers"]
    np.testing.assert_array_equal(layers["padding"], layers["dropped"])  # all rows together are as many as all routes
    assert layers["capacity_rows"].tolist() == [1024] * 4
    assert dropless.tables["layers"]["capacity_rows"].tolist() == [-1] * 4
    assert result.metrics["capacity_utilisation"].value == pytest.approx(1 - result.metrics["drop_rate"].value)


def test_a_rank_never_computes_more_than_its_budget(dropless):
    # int(64 x 2 x 1.0) = 128 rows.
    assert run(rule("hybrid_ep", factor=1.0)).tables["ranks"]["rows"].max() == 128
    assert dropless.tables["ranks"]["rows"].max() > 128


def test_dmoe_computes_whole_blocks():
    assert not (run(rule("dmoe", block=16)).tables["ranks"]["rows"] % 16).any()


def test_routes_that_move_are_sent_and_computed_where_they_went():
    drops, moves = run(rule("next_best", stages=1)), run(rule("next_best", stages=4))
    assert moves.metrics["drop_rate"].value < drops.metrics["drop_rate"].value / 2
    kept = moves.tables["layers"]["kept"]
    np.testing.assert_array_equal(kept + moves.tables["layers"]["dropped"], moves.tables["layers"]["routes"])
    np.testing.assert_array_equal(moves.tables["ranks"]["rows"].reshape(4, 8).sum(axis=1), kept)


def test_next_best_is_refused_where_the_source_has_no_scores():
    with pytest.raises(FidelityError, match=r"'next_best' .* needs the router's scores over all experts"):
        run(rule("next_best"), source="uniform")


@pytest.mark.parametrize("kind", ["hybrid_ep", "deepseek_v2"])
def test_a_limit_per_rank_is_refused_where_experts_do_not_stay_in_order(kind):
    [problem] = check(scenario(rule(kind), placement=plugin("placement", "round_robin")()), no_trace)
    assert problem.path == "policy.capacity"
    assert f"'{kind}' has a limit per rank" in problem.message
    assert "the placement is 'round_robin'; choose placement: contiguous" in problem.message


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A rule that does not do what it says of ``moved`` or ``sent``."""

    how: str
    kind = "wrong"

    def begin(self, setting):
        def limit(routing, *, step, moe_layer):
            none = np.zeros_like(routing.counts)
            kept = Kept(routing=routing, dropped=none, padding=none)
            change = np.array(none)
            change[1, 2] = 1
            if self.how == "invents":
                return dataclasses.replace(kept, moved=change)
            if self.how == "moves":
                change[1, 3] = -1
                return dataclasses.replace(kept, moved=change)
            fewer = dataclasses.replace(routing, counts=routing.counts - change, ids=None, weights=None, scores=None)
            return dataclasses.replace(kept, sent=Kept(routing=fewer, dropped=change if self.how == "keeps" else none, padding=none))

        return limit


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("invents", "sent routes of GPU 1 to other experts, and 1 of them were invented on the way"),
        ("moves", r"GPU 1 routed \d+ copies to expert 2, of which"),
        ("keeps", r"expert 2 computes \d+ copies of GPU 1, but only \d+ were sent"),
        ("loses", r"GPU 1 routed \d+ copies to expert 2, of which \d+ were kept and 0 dropped"),
    ],
)
def test_l1_a_rule_that_computes_or_moves_what_it_does_not_send_is_caught(how, message):
    with pytest.raises(LawBroken, match=message):
        run(Wrong(how), source="uniform")
