"""What one step asks of the hardware: routing through gate, capacity, dispatch and exchange, layer by layer. No clock here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import LawBroken, PluginError
from moesim.engine.arrivals import where_it_arrived
from moesim.engine.batches import guests, plan_batch, with_weights
from moesim.engine.micro_batches import merged_exchange, merged_kept, split, tokens_of_parts
from moesim.engine.own_tokens import OwnTokens, check_ranks, with_padded_rows
from moesim.engine.shared_rows import check_shared, ranks_of_slots
from moesim.engine.touched import UNKNOWN, nodes_touched
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Bind, Carry, Choose, Kernels, Learn, Limit, PlanBatch
from moesim.facts.placement import Placement
from moesim.facts.program import BACKWARD, COLLECTIVES, COMMUNICATES, FORWARD, OPTIMISER, RECOMPUTE, Program, Work
from moesim.facts.routing import Assignment, Kept, LayerRouting, Routing
from moesim.facts.scenario import Parallel, Setting
from moesim.facts.traffic import Exchange
from moesim.models.optimiser import update_work


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoad:
    """One MoE layer of one step, as the hardware sees it.

    ``rows`` and ``padding`` are int[G]: rows a GPU computes (padding included), and how many of them are padding. ``arrived`` is int[G]:
    the rows that arrived at it; GPUs that share experts compute those of all of them, each its part of the width. ``guests`` is int[G]: the
    experts that a GPU holds for this batch beyond those of its placement. ``shared`` says that rows of the shared expert are among them.
    ``nodes`` is how many nodes compute rows of a token, summed over tokens; -1 where tokens are unknown.
    """

    chosen: LayerRouting
    kept: Kept
    exchange: dict[str, Exchange]
    rows: Ints
    padding: Ints
    arrived: Ints
    tokens: Ints
    guests: Ints
    shared: bool = False
    nodes: int = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """One step: its MoE layers, and the seconds of every compute task as float[G].

    ``layers`` are whole layers, for the accounts; ``parts`` are those of each micro-batch, as the hardware plays them (the same objects if
    there is one micro-batch).
    """

    layers: tuple[LayerLoad, ...]
    parts: tuple[tuple[LayerLoad, ...], ...]
    seconds: dict[Work, Floats]
    routing: Routing
    tokens: int

    def part(self, work: Work) -> LayerLoad:
        """Return the layer and micro-batch of a task; the first MoE layer stands for dense ones, whose tokens are the same."""
        return self.parts[work.microbatch][max(work.moe_layer, 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The fresh callables of one run, made from the scenario's plug-ins."""

    choose: Choose
    limit: Limit
    bind: Bind
    carry: Carry
    kernels: Kernels
    place: PlanBatch | None = None


def load_step(
    setting: Setting,
    program: Program,
    policies: Policies,
    placement: Placement,
    routing: Routing,
    step: int,
    *,
    alike: bool = False,
) -> StepLoad:
    """Work out what a step costs before it runs.

    Parameters
    ----------
    setting : Setting
        Of one stage of a pipeline; without one, of all GPUs.
    program : Program
        Says which directions the step has.
    policies : Policies
    placement : Placement
    routing : Routing
        What the source drew.
    step : int
    alike : bool
        Layers with the same routing (the same object) and the same placement cost the same, and are worked out once.

    Returns
    -------
    StepLoad

    Raises
    ------
    LawBroken
        If a token copy is lost or invented between two policies (law L1).
    """
    directions = directions_of(program)
    if len(routing.layers) != len(setting.model.moe_layers):
        raise PluginError(f"the source drew {len(routing.layers)} layers, but the model has {len(setting.model.moe_layers)} MoE layers")
    local = _local_index(placement.rank_of_slot, setting.parallel.ep)
    layers: list[LayerLoad] = []
    microbatches = program.microbatches
    parts: list[list[LayerLoad]] = [[] for _ in range(microbatches)]
    seconds: dict[Work, Floats] = {}
    own = OwnTokens(setting, policies.kernels, step)
    expert_rows: list[list[Ints]] = [[] for _ in range(microbatches)]
    known: dict[tuple[int, bytes], _Loaded] = {}
    for moe_layer in range(len(setting.model.moe_layers)):
        drawn = routing.layers[moe_layer]
        key = (id(drawn), placement.expert_of_slot[moe_layer].tobytes())
        if not (alike and key in known):
            known = known if alike else {}
            known[key] = _load_layer(setting, policies, placement, drawn, directions, local, step, moe_layer, microbatches)
        loaded = known[key]
        layers.append(loaded.whole)
        for microbatch, (load, rows_of_slot) in enumerate(loaded.parts):
            parts[microbatch].append(load)
            expert_rows[microbatch].append(rows_of_slot)
    check_ranks(setting, layers[0].tokens, step)
    for task in program.tasks:
        work = task.work
        if work.phase in COMMUNICATES or work in seconds:
            continue
        direction = FORWARD if work.direction == RECOMPUTE else work.direction
        if work.phase == "experts":
            seconds[work] = policies.kernels.experts(expert_rows[work.microbatch][work.moe_layer], direction=direction)
            continue
        if work.phase == OPTIMISER:
            slots = np.tile(placement.slots_per_rank(setting.parallel.ep), setting.groups)
            update = update_work(setting, work.layer, slots)
            seconds[work] = policies.kernels.dense(update.flops, update.moved, dtype=update.dtype)
            continue
        mine = parts[work.microbatch][max(work.moe_layer, 0)]
        if work.phase == "shared" and mine.shared:  # the experts' kernel computes these rows
            seconds[work] = np.zeros(setting.gpus)
            continue
        seconds[work] = own.seconds(work, direction, mine.tokens)
    played = tuple(tuple(part) for part in parts)
    return StepLoad(layers=tuple(layers), parts=played, seconds=seconds, routing=routing, tokens=int(layers[0].tokens.sum()))


def directions_of(program: Program) -> tuple[str, ...]:
    """Return the directions in which a program exchanges tokens."""
    found = {task.work.direction for task in program.tasks if task.work.direction != RECOMPUTE or task.work.phase in COLLECTIVES}
    return tuple(direction for direction in (FORWARD, BACKWARD, RECOMPUTE) if direction in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """One MoE layer: as a whole, and of each micro-batch what it asks for and int[G, slots of a GPU], the rows of each local expert."""

    whole: LayerLoad
    parts: tuple[tuple[LayerLoad, Ints], ...]


def _load_layer(
    setting: Setting,
    policies: Policies,
    placement: Placement,
    drawn: LayerRouting,
    directions: tuple[str, ...],
    local: Ints,
    step: int,
    moe_layer: int,
    microbatches: int,
) -> _Loaded:
    """Return what one MoE layer asks for. A gate sees the tokens of the whole step, everything after it those of a micro-batch."""
    chosen = policies.choose(drawn, step=step, moe_layer=moe_layer)
    if microbatches == 1:
        tokens, given = [], [chosen]
    else:
        tokens = tokens_of_parts(chosen.token_start, microbatches)
        given = split(chosen, tokens, f"a schedule with {microbatches} micro-batches")
    parts = tuple(_load_part(setting, policies, placement, part, directions, local, step, moe_layer) for part in given)
    whole = parts[0][0] if microbatches == 1 else _merged(chosen, [load for load, _ in parts], tokens)
    # A protocol takes far longer to check than an attribute, and this is asked for every layer of every step.
    if hasattr(policies.choose, "learn") and isinstance(policies.choose, Learn):
        policies.choose.learn(whole.kept, step=step, moe_layer=moe_layer)
    return _Loaded(whole=whole, parts=parts)


def _merged(chosen: LayerRouting, parts: list[LayerLoad], tokens: list[Ints]) -> LayerLoad:
    return LayerLoad(
        chosen=chosen,
        kept=merged_kept(chosen, [part.kept for part in parts], tokens),
        exchange={direction: merged_exchange([part.exchange[direction] for part in parts]) for direction in parts[0].exchange},
        rows=np.sum([part.rows for part in parts], axis=0),
        padding=np.sum([part.padding for part in parts], axis=0),
        arrived=np.sum([part.arrived for part in parts], axis=0),
        tokens=np.diff(chosen.token_start),
        guests=np.max([part.guests for part in parts], axis=0),
        shared=parts[0].shared,
        nodes=UNKNOWN if UNKNOWN in {part.nodes for part in parts} else sum(part.nodes for part in parts),
    )


def _load_part(
    setting: Setting,
    policies: Policies,
    placement: Placement,
    chosen: LayerRouting,
    directions: tuple[str, ...],
    local: Ints,
    step: int,
    moe_layer: int,
) -> tuple[LayerLoad, Ints]:
    """Return what one MoE layer of one micro-batch asks for, and int[G, slots of a GPU], the rows of each local expert."""
    kept = policies.limit(chosen, step=step, moe_layer=moe_layer)
    batch = None
    _check_kept(chosen, kept, step, moe_layer)
    kept = with_padded_rows(kept, np.diff(chosen.token_start), setting)
    if policies.place is not None:
        batch = plan_batch(policies.place, kept, setting, step=step, moe_layer=moe_layer)
        assignment, local = batch.assignment, _local_index(batch.rank_of_slot, setting.parallel.ep)
        _check_groups(assignment, setting.parallel.ep, step, moe_layer)
    else:
        assignment = policies.bind(kept, placement, step=step, moe_layer=moe_layer)
        _check_tokens(kept, assignment, placement.expert_of_slot[moe_layer], setting.parallel.ep, step, moe_layer)
    travelling = assignment
    if kept.sent is not None:
        travelling = policies.bind(kept.sent, placement, step=step, moe_layer=moe_layer)
        _check_kept(chosen, kept.sent, step, moe_layer)
        _check_tokens(kept.sent, travelling, placement.expert_of_slot[moe_layer], setting.parallel.ep, step, moe_layer)
        _check_computed(kept, kept.sent, step, moe_layer)
        assignment = where_it_arrived(assignment, travelling, placement.expert_of_slot[moe_layer])
    if assignment.shared_slots:
        local = _local_index(ranks_of_slots(assignment, placement.rank_of_slot, setting.parallel.ep), setting.parallel.ep)
    rows_of_slot = np.zeros((setting.gpus, local.max(initial=0) + 1), dtype=np.int64)
    padding = np.zeros(setting.gpus, dtype=np.int64)
    columns = np.broadcast_to(local, assignment.destination.shape)
    np.add.at(rows_of_slot, (assignment.destination, columns), assignment.slot_counts + assignment.slot_padding)
    np.add.at(padding, assignment.destination, assignment.slot_padding)
    arrived = rows_of_slot.sum(axis=1)
    rows_of_slot, padding = gathered(rows_of_slot, setting.parallel), gathered(padding, setting.parallel)
    exchange = {direction: policies.carry(travelling, direction=direction) for direction in directions if direction != RECOMPUTE}
    again = {RECOMPUTE: exchange[FORWARD]} if RECOMPUTE in directions else {}  # the same tokens travel once more
    _check_exchange(exchange[FORWARD], travelling, setting.parallel.ep, step, moe_layer)
    home = placement.slots_per_rank(setting.parallel.ep)
    if batch is not None:
        exchange = with_weights(exchange, batch, setting)
    load = LayerLoad(
        chosen=chosen,
        kept=kept,
        exchange={**exchange, **again},
        rows=rows_of_slot.sum(axis=1),
        padding=padding,
        arrived=arrived,
        tokens=np.diff(chosen.token_start),
        guests=guests(batch, home, setting.parallel.ep) if batch is not None else np.zeros(setting.gpus, dtype=np.int64),
        shared=assignment.shared_slots > 0,
        nodes=nodes_touched(travelling, setting.cluster.node_of),
    )
    return load, rows_of_slot


def gathered(values: Ints, parallel: Parallel) -> Ints:
    """Return [G, ...], for each GPU the sum over those that share its experts, in the order of expert-parallel groups."""
    if parallel.etp == 1:
        return values
    of_blocks = values.reshape(-1, parallel.etp, parallel.ep, *values.shape[1:])
    return np.asarray(np.broadcast_to(of_blocks.sum(axis=1, keepdims=True), of_blocks.shape).reshape(values.shape))


def _local_index(rank_of_slot: Ints, ranks: int) -> Ints:
    """Return int[S], the position of each slot among the slots of its rank."""
    held = np.bincount(rank_of_slot, minlength=ranks)
    local = np.empty(len(rank_of_slot), dtype=np.int64)
    local[np.argsort(rank_of_slot, kind="stable")] = np.arange(len(rank_of_slot)) - np.repeat(np.cumsum(held) - held, held)
    return local


def _check_exchange(exchange: Exchange, assignment: Assignment, ranks: int, step: int, moe_layer: int) -> None:
    """Law L2: every GPU with tokens for others sends bytes, every GPU that gets tokens receives some, and so on the way back.

    Rows of padding do not count: an exchange may leave it to the receiver to make them. And nothing goes to another group, for no
    collective would carry it.
    """
    gpus = len(assignment.slot_counts)
    leaving = np.where(assignment.destination == np.arange(gpus)[:, None], 0, assignment.slot_counts)
    out, back = leaving.sum(axis=1), np.zeros(gpus, dtype=np.int64)
    np.add.at(back, assignment.destination.ravel(), leaving.ravel())
    for phase, stages, wanted in (("dispatch", exchange.dispatch, (out, back)), ("combine", exchange.combine, (back, out))):
        for stage in stages:
            astray = stage.astray(ranks)
            if astray is not None:
                raise LawBroken(
                    f"law L2 (bytes): step {step}, MoE layer {moe_layer}: the {phase} of the exchange has bytes from GPU {astray[0]} to "
                    f"GPU {astray[1]}, which are in different expert-parallel groups of {ranks} ranks"
                )
        sent = sum((stage.sent() for stage in stages), np.zeros(gpus))
        received = sum((stage.received() for stage in stages), np.zeros(gpus))
        for side, moved, asked in (("sends", sent, wanted[0]), ("receives", received, wanted[1])):
            missing = (asked > 0) & (moved <= 0)
            if missing.any():
                gpu = int(missing.argmax())
                raise LawBroken(
                    f"law L2 (bytes): step {step}, MoE layer {moe_layer}: GPU {gpu} {side} {asked[gpu]} rows in {phase}, "
                    "but the exchange moves no bytes for it"
                )


def _check_computed(kept: Kept, sent: Kept, step: int, moe_layer: int) -> None:
    """Law L1: nothing is computed that did not travel."""
    missing = np.argwhere(kept.routing.counts > sent.routing.counts)
    if missing.size:
        source, expert = (int(i) for i in missing[0])
        raise LawBroken(
            f"law L1 (tokens): step {step}, MoE layer {moe_layer}: expert {expert} computes {kept.routing.counts[source, expert]} copies "
            f"of GPU {source}, but only {sent.routing.counts[source, expert]} were sent"
        )


def _check_tokens(kept: Kept, assignment: Assignment, experts_of_slots: Ints, ranks: int, step: int, moe_layer: int) -> None:
    """Law L1: every copy that is kept is sent and computed once."""
    held = np.zeros_like(kept.routing.counts)
    np.add.at(held.T, experts_of_slots, assignment.slot_counts[:, : len(experts_of_slots)].T)
    if not np.array_equal(kept.routing.counts, held):
        source, expert = (int(i) for i in np.argwhere(kept.routing.counts != held)[0])
        raise LawBroken(
            f"law L1 (tokens): step {step}, MoE layer {moe_layer}: GPU {source} kept {kept.routing.counts[source, expert]} copies for "
            f"expert {expert}, but {held[source, expert]} were bound to slots that hold it"
        )
    _check_groups(assignment, ranks, step, moe_layer)
    check_shared(assignment, ranks, step, moe_layer)
    if assignment.slot_padding.sum() != kept.padding.sum():
        raise LawBroken(
            f"law L1 (tokens): step {step}, MoE layer {moe_layer}: the capacity rule added {kept.padding.sum()} padding rows, "
            f"but {assignment.slot_padding.sum()} were bound to slots"
        )


def _check_groups(assignment: Assignment, ranks: int, step: int, moe_layer: int) -> None:
    """Law L1: the slots that a GPU uses are on GPUs of its own group."""
    group = np.arange(len(assignment.destination))[:, None] // ranks
    if (assignment.destination // ranks != group).any():
        source, slot = (int(i) for i in np.argwhere(assignment.destination // ranks != group)[0])
        raise LawBroken(
            f"law L1 (tokens): step {step}, MoE layer {moe_layer}: slot {slot} of GPU {source} was looked for on GPU "
            f"{assignment.destination[source, slot]}, outside its expert-parallel group"
        )


def _check_kept(chosen: LayerRouting, kept: Kept, step: int, moe_layer: int) -> None:
    """Law L1: what was chosen was kept or dropped, or went to another expert that had room."""
    after = kept.routing.counts + kept.dropped
    given = chosen.counts
    if kept.moved is not None:
        for source in np.flatnonzero(kept.moved.sum(axis=1))[:1].tolist():
            raise LawBroken(
                f"law L1 (tokens): step {step}, MoE layer {moe_layer}: the capacity rule sent routes of GPU {source} to other experts, and "
                f"{abs(kept.moved[source].sum())} of them were {'lost' if kept.moved[source].sum() < 0 else 'invented'} on the way"
            )
        given = chosen.counts + kept.moved
    if not np.array_equal(given, after):
        source, expert = (int(i) for i in np.argwhere(given != after)[0])
        raise LawBroken(
            f"law L1 (tokens): step {step}, MoE layer {moe_layer}: GPU {source} routed {given[source, expert]} copies to expert "
            f"{expert}, of which {kept.routing.counts[source, expert]} were kept and {kept.dropped[source, expert]} dropped"
        )
