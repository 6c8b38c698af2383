"""Measure an expert-parallel MoE layer: phases, arrival skew, rows and drops of every rank."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from moesim.base.errors import MeasurementError
from moesim.lab.alltoall import all_to_all
from moesim.lab.device import DTYPES, choose_kernel
from moesim.lab.experts import Weights, feed_forward, grouped_product, make_weights
from moesim.lab.job import Job, LayerCase, visits
from moesim.lab.moe_layer import BACKWARD, FORWARD, Layer, Pass, Shape
from moesim.lab.rank import Journal
from moesim.lab.routing import Gate, make_gate
from moesim.lab.session import Session, wait_until

REFERENCE_CALLS = 2


def build(job: Job, session: Session, case: LayerCase, weights_of: dict[Any, Weights]) -> tuple[Layer, Any]:
    """Return this rank's part of a case's layer, and its tokens.

    Gate and experts are drawn from the job's seed, tokens from the seed and the rank: any number of ranks holds the same layer.
    """
    device = session.device
    gate = make_gate(device.generator(job.seed * 31 + 7), case.experts, case.hidden, case.skew, in_order=case.popularity == "in_order")
    local = case.experts // session.world
    mine = range(session.rank * local, (session.rank + 1) * local)
    key = (case.experts, case.hidden, case.expert_width, case.dtype, case.backward)
    if key not in weights_of:
        weights_of[key] = make_weights(job.seed, mine, case.hidden, case.expert_width, case.dtype, device)
        for parameter in weights_of[key].parameters:
            parameter.requires_grad_(case.backward)
    weights = weights_of[key]
    place, dtype = device.place, DTYPES[case.dtype]
    gate = Gate(weight=gate.weight.to(place, dtype).requires_grad_(case.backward), popularity=gate.popularity.to(place))
    shape = Shape(
        experts=case.experts,
        top_k=case.top_k,
        capacity_factor=case.capacity_factor,
        drop=case.drop,
        kernel=choose_kernel(case.kernel, device, case.dtype),
    )
    layer = Layer(
        shape,
        gate,
        weights,
        exchange=all_to_all(session, case.posting),
        gather=session.gather,
        rank=session.rank,
        world=session.world,
        device=device,
    )
    x = torch.randn(case.tokens, case.hidden, generator=device.generator(job.seed * 1_000_003 + 500_009 + session.rank))
    return layer, x.to(place, dtype).requires_grad_(case.backward)


def measure_layer(job: Job, session: Session, journal: Journal) -> None:
    """Measure every case of a job, in its order, and write one line per repeat.

    Parameters
    ----------
    job : Job
        Of kind ``layer``.
    session : Session
        The ranks.
    journal : Journal
        Where lines go; :mod:`moesim.lab.rank` says what is in them.
    """
    built: dict[int, tuple[Layer, Any]] = {}
    weights_of: dict[Any, Weights] = {}
    round_of = -1
    for repeat, number in visits(job):
        case = job.cases[number]
        if not isinstance(case, LayerCase):
            raise TypeError(type(case).__name__)
        if repeat > round_of:
            journal.publish()
            round_of = repeat
        if number not in built:
            built[number] = build(job, session, case, weights_of)
            journal.write({"case": case.name, "facts": _facts(session, case, *built[number])})
        sample = _once(session, case, *built[number])
        if job.reference and not session.device.on_gpu:
            sample["reference_s"] = _reference(session, built[number][0], job.reference)
        if repeat >= 0:
            journal.write({"case": case.name, "repeat": repeat, **sample})
    journal.publish()


def _once(session: Session, case: LayerCase, layer: Layer, x: Any) -> dict[str, Any]:
    device = session.device
    gradient = torch.ones_like(x)
    cpu: list[float] = []
    start = session.agree()
    marks = device.marks()

    def mark() -> None:
        marks.mark()
        cpu.append(time.process_time())

    late = wait_until(start)
    mark()
    with torch.set_grad_enabled(case.backward):
        done = layer.forward(x, mark)
    if case.backward:
        layer.backward(done, gradient, mark)
    instants = [instant - start for instant in marks.seconds()]
    spent = [after - before for before, after in pairwise(cpu)]
    return {"marks_s": instants, "cpu_s": spent, "late_s": late, "dropped": done.dropped}


def _reference(session: Session, layer: Layer, rows: int) -> float:
    """Return what an expert takes for so many rows on this rank's core while all ranks are at it: seconds of the core.

    The rank goes through all its experts, as a step does, so that weights come from where they come from in a step. Machines do not
    compute at one speed: neighbours on the same silicon come and go. Who knows a step only from kernels that were timed some minutes
    before cannot know that.
    """
    x = torch.ones(rows * layer.local, layer.weights.up.shape[2], dtype=layer.weights.up.dtype)
    product = grouped_product("loop", [rows] * layer.local, session.device)
    session.meet()
    with torch.no_grad():
        begun = time.thread_time()
        for _ in range(REFERENCE_CALLS):
            feed_forward(x, layer.weights, product)
        return (time.thread_time() - begun) / (REFERENCE_CALLS * layer.local)


def _facts(session: Session, case: LayerCase, layer: Layer, x: Any) -> Mapping[str, Any]:
    """Run once, see to it that no row is lost on the way, and return what is the same in every repeat.

    ``sums`` are those of all elements of the output and of the gradients: machines or kernels that compute the same layer agree in them
    but for rounding.
    """
    sums = {}
    with torch.set_grad_enabled(case.backward):
        done = layer.forward(x)
        _check(session, case, done)
        sums["output"] = float(done.output.detach().double().sum())
    if case.backward:
        slopes = layer.backward(done, torch.ones_like(x))
        sums |= {name: float(getattr(slopes, name).double().sum()) for name in ("x", "gate", "up", "down")}
    return {
        "phases": [*FORWARD, *(BACKWARD if case.backward else ())],
        "kernel": layer.shape.kernel,
        "routes": case.tokens * case.top_k,
        "kept": done.kept.tolist(),
        "dropped": done.dropped,
        "sent_rows": done.sends,
        "received_rows": done.receives,
        "sums": sums,
        "row_bytes": done.rows_sent.element_size() * done.rows_sent.shape[1],
    }


def _check(session: Session, case: LayerCase, done: Pass) -> None:
    """Compare the sum of all rows sent with that of all rows received, in float64, over all ranks."""
    weight = torch.arange(1, done.rows_sent.shape[1] + 1, dtype=torch.float64, device=done.rows_sent.device)
    sums = torch.stack([(done.rows_sent.double() @ weight).sum(), (done.rows_received.double() @ weight).sum()]).detach().cpu()
    rows = torch.tensor([done.rows_sent.shape[0], done.rows_received.shape[0]])
    if session.world > 1:
        dist.all_reduce(sums)
        dist.all_reduce(rows)
    sent, received = sums.tolist()
    if int(rows[0]) != int(rows[1]) or abs(sent - received) > 1e-6 * max(1.0, float(rows[0]) * case.hidden):
        raise MeasurementError(
            f"case {case.name!r}: {int(rows[0])} rows with sum {sent} were sent, but {int(rows[1])} with sum {received} received: "
            "the exchange loses or changes data"
        )
