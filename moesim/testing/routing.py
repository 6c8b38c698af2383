"""Checks of the slots that decide which token goes where and which is dropped: source, gate, capacity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.base.errors import ContractBroken
from moesim.facts.evidence import STRENGTH
from moesim.facts.routing import Kept, LayerRouting, Routing, count_routes
from moesim.facts.scenario import Setting
from moesim.testing.rules import Trials, demand, name_of, same, whole_numbers
from moesim.testing.world import tiny_routings, tiny_settings

STEPS = 3


def check_source(source: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check a source of routing.

    Each step has every MoE layer over all GPUs; a token's experts are distinct (L11) and exist; counts agree with the choices; the same
    step gives the same routing, whenever it is asked for (L8) and in any run (L9).

    Parameters
    ----------
    source : object
        An instance of a source.
    settings : sequence of Setting or None
        Where to try it, small ones by default; a source that reads a file needs settings whose ``read_trace`` gives it.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("source", source)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        draw = trials.ask(source.begin, setting)
        if draw is None:
            continue
        drawn = [_layers(draw(step)) for step in range(STEPS)]
        for step, layers in enumerate(drawn):
            expected = len(setting.model.moe_layers)
            demand(len(layers) == expected, "shape", f"{who}: step {step} has {len(layers)} layers, the model {expected} MoE layers")
            for layer, routing in enumerate(layers):
                _check_drawn(f"{who}: step {step}, MoE layer {layer}", routing, setting)
        _check_evidence(who, draw(0))
        demand(same(_layers(draw(0)), drawn[0]), "law L8", f"{who}: drawing step 0 again gives other choices")
        backwards = source.begin(setting)
        for step in reversed(range(STEPS)):
            text = f"{who}: a fresh run that starts with step {STEPS - 1} draws other choices for step {step}"
            demand(same(_layers(backwards(step)), drawn[step]), "law L9", text)
        lazily = backwards(1).layers
        for layer in reversed(range(len(drawn[1]))):
            demand(
                same(lazily[layer], drawn[1][layer]), "law L8", f"{who}: MoE layer {layer} depends on the order in which layers are read"
            )
    trials.finish()


def check_gate(gate: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check a gate.

    It answers, or refuses with a ``FidelityError`` what knows too little; its choices are distinct experts (L11), counts agree with
    them, tokens stay where they are, and a fresh run gives the same answers (L8).

    Parameters
    ----------
    gate : object
        An instance of a gate.
    settings : sequence of Setting or None
        Where to try it; small ones by default.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("gate", gate)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        for routing in tiny_routings(setting):
            runs = trials.ask(_two_runs, gate, setting, routing)
            if runs is None:
                continue
            for (step, layer), answer in runs[0].items():
                where = f"{who}: step {step}, MoE layer {layer}"
                demand(isinstance(answer, LayerRouting), "type", f"{where}: returned {type(answer).__name__}, expected LayerRouting")
                _check_drawn(where, answer, setting)
                demand(same(answer.token_start, routing.token_start), "law L1", f"{where}: tokens moved to other GPUs")
                demand(answer.ids is not None or routing.ids is None, "fidelity", f"{where}: forgot the choices of the tokens")
            demand(same(list(runs[0].values()), list(runs[1].values())), "law L8", f"{who}: two fresh runs give different choices")
    trials.finish()


def check_capacity(rule: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check a capacity rule.

    Kept and dropped routes add up to the given ones for every source and expert (L1), those that the rule moved counted where they went;
    what is kept was given, in its place, unless it was moved; what is computed was sent; no source keeps more rows for an expert than the
    capacity says; and if the rule has a field ``factor``, a factor of E/k drops nothing (L15).

    Parameters
    ----------
    rule : object
        An instance of a capacity rule.
    settings : sequence of Setting or None
        Where to try it; small ones by default.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("capacity", rule)
    trials = Trials(who)
    has_factor = any(field.name == "factor" for field in dataclasses.fields(rule))
    for setting in settings or tiny_settings():
        for routing in tiny_routings(setting):
            runs = trials.ask(_two_runs, rule, setting, routing)
            if runs is None:
                continue
            for (step, layer), kept in runs[0].items():
                where = f"{who}: step {step}, MoE layer {layer}"
                demand(isinstance(kept, Kept), "type", f"{where}: returned {type(kept).__name__}, expected Kept")
                _check_kept(where, kept, routing)
                if kept.sent is not None:
                    _check_kept(f"{where}, what it sends", kept.sent, routing)
                    computed = bool((kept.routing.counts <= kept.sent.routing.counts).all())
                    demand(computed, "law L1", f"{where}: computes routes that were not sent")
            demand(same(list(runs[0].values()), list(runs[1].values())), "law L8", f"{who}: two fresh runs keep different routes")
            if has_factor:
                enough = setting.model.experts / setting.model.top_k
                wide = dataclasses.replace(rule, factor=enough)
                for kept in _replay(wide, setting, routing).values():
                    dropped = int(kept.dropped.sum())
                    demand(dropped == 0, "law L15", f"{who}: factor {enough:g} = E/k drops {dropped} of {routing.routes} routes")
    trials.finish()


def _layers(routing: Routing) -> list[LayerRouting]:
    return [routing.layers[layer] for layer in range(len(routing.layers))]


def _two_runs(plugin: Any, setting: Setting, routing: LayerRouting) -> tuple[dict[tuple[int, int], Any], dict[tuple[int, int], Any]]:
    return _replay(plugin, setting, routing), _replay(plugin, setting, routing)


def _replay(plugin: Any, setting: Setting, routing: LayerRouting) -> dict[tuple[int, int], Any]:
    """Return what a fresh run says to the same routing in two steps of all MoE layers."""
    run = plugin.begin(setting)
    return {(step, layer): run(routing, step=step, moe_layer=layer) for step in range(2) for layer in range(len(setting.model.moe_layers))}


def _check_evidence(who: str, routing: Routing) -> None:
    demand(routing.basis in STRENGTH, "evidence", f"{who}: basis {routing.basis!r} is none of {', '.join(STRENGTH)}")
    texts = isinstance(routing.notes, tuple) and all(isinstance(note, str) for note in routing.notes)
    demand(texts, "type", f"{who}: notes are {routing.notes!r}, expected a tuple of sentences")


def _check_drawn(where: str, routing: LayerRouting, setting: Setting) -> None:
    experts, gpus = setting.model.experts, setting.gpus
    demand(routing.experts == experts, "shape", f"{where}: {routing.experts} experts, the model has {experts}")
    start = np.asarray(routing.token_start)
    whole_numbers(where, "token_start", start, (gpus + 1,))
    demand(start[0] == 0 and bool((np.diff(start) >= 0).all()), "range", f"{where}: token_start {start.tolist()} must rise from 0")
    whole_numbers(where, "counts", routing.counts, (gpus, experts))
    if routing.scores is not None:
        shape = routing.scores.shape
        demand(shape == (routing.tokens, experts), "shape", f"{where}: scores have shape {shape}, expected ({routing.tokens}, {experts})")
    if routing.ids is not None:
        check_ids(where, routing)


def check_ids(where: str, routing: LayerRouting) -> None:
    """Check the choices of known tokens: in range, distinct, counted right, with one finite weight of at least 0 each.

    Raises
    ------
    ContractBroken
        Naming the token.
    """
    ids = np.asarray(routing.ids)
    demand(ids.ndim == 2 and len(ids) == routing.tokens, "shape", f"{where}: ids have shape {ids.shape}, expected ({routing.tokens}, k)")
    demand(ids.dtype.kind in "iu", "type", f"{where}: ids hold {ids.dtype}, expected integers")
    outside = np.argwhere((ids < -1) | (ids >= routing.experts))
    if outside.size:
        token, choice = outside[0]
        text = f"{where}: token {token} chose expert {ids[token, choice]}, but experts are 0 to {routing.experts - 1}"
        raise ContractBroken("law L11", text)
    ordered = np.sort(ids, axis=1)
    twice = np.argwhere((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))
    if twice.size:
        token, place = twice[0]
        raise ContractBroken("law L11", f"{where}: token {token} chose expert {ordered[token, place]} twice")
    counted = count_routes(ids, routing.token_start, routing.experts)
    wrong = np.argwhere(counted != routing.counts)
    if wrong.size:
        gpu, expert = wrong[0]
        text = f"{where}: {routing.counts[gpu, expert]} routes counted from GPU {gpu} to expert {expert}, but {counted[gpu, expert]} chosen"
        raise ContractBroken("law L1", text)
    if routing.weights is not None:
        weights = np.asarray(routing.weights)
        demand(weights.shape == ids.shape, "shape", f"{where}: weights have shape {weights.shape}, ids {ids.shape}")
        demand(bool(np.isfinite(weights).all()) and not (weights < 0).any(), "range", f"{where}: a weight is negative or not finite")


def _check_kept(where: str, kept: Kept, given: LayerRouting) -> None:
    left, shape = kept.routing, given.counts.shape
    whole_numbers(where, "dropped", kept.dropped, shape)
    whole_numbers(where, "padding", kept.padding, shape)
    whole_numbers(where, "counts", left.counts, shape)
    asked = given.counts
    if kept.moved is not None:
        demand(kept.moved.shape == shape, "shape", f"{where}: moved has shape {kept.moved.shape}, expected {shape}")
        demand(not kept.moved.sum(axis=1).any(), "law L1", f"{where}: routes were lost or invented between experts")
        asked = given.counts + kept.moved
    wrong = np.argwhere(left.counts + kept.dropped != asked)
    if wrong.size:
        at = tuple(wrong[0])
        text = f"{left.counts[at]} kept and {kept.dropped[at]} dropped of {asked[at]} routes from GPU {at[0]} to expert {at[1]}"
        raise ContractBroken("law L1", f"{where}: {text}")
    demand(same(left.token_start, given.token_start), "law L1", f"{where}: tokens moved to other GPUs")
    if kept.capacity is not None:
        whole_numbers(where, "capacity", kept.capacity, (given.gpus,))
        over = np.argwhere(left.counts + kept.padding > kept.capacity[:, None])
        if over.size:
            gpu, expert = over[0]
            rows = f"{left.counts[gpu, expert]} routes and {kept.padding[gpu, expert]} padding rows"
            text = f"{where}: {rows} from GPU {gpu} to expert {expert}, more than the capacity {kept.capacity[gpu]}"
            raise ContractBroken("capacity", text)
    if given.ids is None:
        demand(kept.fully_dropped is None, "fidelity", f"{where}: fully_dropped is {kept.fully_dropped}, but no token is known")
        demand(left.ids is None, "fidelity", f"{where}: made up the choices of tokens out of counts")
        return
    demand(left.ids is not None, "fidelity", f"{where}: forgot the choices of the tokens")
    check_ids(where, left)
    ids = np.asarray(left.ids)
    demand(ids.shape == given.ids.shape, "shape", f"{where}: ids have shape {ids.shape}, given were {given.ids.shape}")
    changed = np.argwhere((ids >= 0) & (ids != given.ids))
    if changed.size and kept.moved is None:
        at = tuple(changed[0])
        text = f"{where}: choice {at[1]} of token {at[0]} was expert {given.ids[at]} and became {ids[at]}"
        raise ContractBroken("law L1", text)
    if left.weights is not None:
        demand(not np.asarray(left.weights)[ids < 0].any(), "weights", f"{where}: a dropped route has a weight other than 0")
    lost = int(((given.ids >= 0).any(axis=1) & ~(ids >= 0).any(axis=1)).sum())
    demand(
        kept.fully_dropped in {None, lost},
        "law L1",
        f"{where}: fully_dropped is {kept.fully_dropped}, but {lost} tokens lost all their routes",
    )
