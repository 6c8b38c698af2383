"""What all exchanges share: dtypes, when and in which order messages are posted, the share of the GPU that communication gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError, UsageError, did_you_mean
from moesim.base.fields import BytesPerSecond, Choice, Count, CountOrZero, Seconds
from moesim.facts.arrays import Floats, Ints
from moesim.facts.group_traffic import GroupTraffic
from moesim.facts.model import Dtype
from moesim.facts.program import BACKWARD, FORWARD
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.facts.traffic import ORDERS, Exchange, Traffic
from moesim.models.exchange.fitted_limits import Limits
from moesim.models.exchange.payload import GRADIENT_DTYPE, INDEX_BYTES, WEIGHT_BYTES, Price, payload_bytes

Stage = tuple[Ints, Ints]
"""Copies of tokens and rows of padding, int[G / R, R, R] each, from source to destination GPU of every group of R."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a layer sends, before it is priced.

    Parameters
    ----------
    out, home : tuple of Stage
        The stages to the experts, and those back to the tokens.
    counted : float[G]
        Rows of each GPU by which the library reckons its bandwidth.
    """

    out: tuple[Stage, ...]
    home: tuple[Stage, ...]
    counted: Floats

    def __post_init__(self) -> None:
        for stage in (*self.out, *self.home):
            for rows in stage:
                rows.flags.writeable = False  # nobody else has them: traffic can share them without a copy


def there_and_back(out: tuple[Stage, ...], counted: Ints) -> Rows:
    """Return rows whose way home is the way out reversed: every stage the other way, the last first."""
    home = tuple((copies.swapaxes(1, 2), padding.swapaxes(1, 2)) for copies, padding in reversed(out))
    return Rows(out=out, home=home, counted=counted.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """What every exchange can be told.

    Parameters
    ----------
    dispatch_dtype, combine_dtype : str
        Of the forward payload.
    scale_block : int
        Elements that share a scale in ``fp8``, ``int8`` and ``fp4``.
    launch : float
        Seconds before a GPU offers its first byte. The default is measured: nccl-tests all-to-all among 8 H200 of one node, median of the
        rows up to 8 KiB in half precision (``h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet`` under
        aic-core/src/aiconfigurator_core/systems/data
        of ai-dynamo/aiconfigurator at 095f58a). It holds the latency of the links too.
    start : str
        ``pairwise``: a pair starts when both have arrived. ``barrier``: counts are exchanged first, so nobody sends before all are there.
    order : str
        In which order a GPU posts its messages, one to each GPU it sends to. ``rotated``: GPU g begins with g + 1. ``ascending``: all begin
        with the first. It matters where ``overhead`` or ``in_flight`` keep messages back.
    overhead : float
        Seconds that a GPU spends on a message before it can post the next.
    in_flight : int
        Messages of a GPU that may be on their way at once; 0 for all.
    communication_sms : int or None
        Streaming multiprocessors that the communication kernels of a GPU get; null if they limit nothing and hold nothing. In a schedule
        that computes beside communication, kernels have so many fewer while a dispatch or combine is under way.
    bandwidth_per_sm : float
        What each of them sends, and receives. The default is the median over 4 to 16 SMs and both ways of DeepEP's normal kernels among 8
        H200 of one node, 8192 tokens, hidden 7168, top-8 of 256: bytes that leave a GPU, by expectation of its uniform routing, over
        measured time (``h200_sxm/comm/sglang/0.5.12/wideep_deepep_normal_perf.parquet`` under the same folder). Beyond 20 SMs the links
        are what limits.
    """

    dispatch_dtype: Dtype = "bf16"
    combine_dtype: Dtype = "bf16"
    scale_block: Count = 128
    launch: Seconds = 8.7e-6
    start: Annotated[str, Choice(("pairwise", "barrier"))] = "pairwise"
    order: Annotated[str, Choice(ORDERS)] = "rotated"
    overhead: Seconds = 0.0
    in_flight: CountOrZero = 0
    communication_sms: Count | None = None
    bandwidth_per_sm: BytesPerSecond = 16.8e9

    def port(self, setting: Setting) -> float:
        """Return the B/s that the communication kernels of a GPU send and receive at most.

        Raises
        ------
        PluginError
            If they are given more SMs than the GPU has.
        """
        if self.communication_sms is None:
            return math.inf
        gpu = setting.cluster.gpu
        if self.communication_sms > gpu.sms:
            raise PluginError(
                f"exchange.communication_sms is {self.communication_sms}, but {gpu.name} has {gpu.sms} SMs: give communication fewer, "
                "or leave the key out for no limit"
            )
        return self.communication_sms * self.bandwidth_per_sm

    def held_sms(self, setting: Setting) -> float:
        """Return the share of a GPU's SMs that its communication kernels hold."""
        return 0.0 if self.communication_sms is None else self.communication_sms / setting.cluster.gpu.sms

    def price(self, width: int, *, choices: int = 0) -> Price:
        """Return what a row weighs if it carries an expert index and a gate weight for so many choices.

        Parameters
        ----------
        width : int
            Elements of a token.
        choices : int
            Choices of which a dispatched row names expert and gate weight; backward, each returns a gradient of its weight.
        """
        gradient = payload_bytes(width, GRADIENT_DTYPE, self.scale_block)
        dispatch = payload_bytes(width, self.dispatch_dtype, self.scale_block)
        combine = payload_bytes(width, self.combine_dtype, self.scale_block)
        return Price(
            dispatch=dispatch + choices * (INDEX_BYTES + WEIGHT_BYTES),
            combine=combine,
            gradient_out=gradient,
            gradient_home=gradient + choices * WEIGHT_BYTES,
            counted_dispatch=dispatch,
            counted_combine=combine,
            counted_gradient=gradient,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """One run's exchange: it counts the rows of a layer once, and prices them for each direction.

    Parameters
    ----------
    plan : Transport
        The plug-in.
    price : Price
        Of one row.
    port : float
        B/s that communication kernels can send, and receive.
    held_sms : float
        Share of a GPU's SMs that they hold.
    count : callable
        What an assignment sends.
    pipelined : bool
        Whether the stages of a way start together.
    limits : Limits or None
        What a profile says of the kernels: its launches then stand in place of the plug-in's, and its port limits a GPU too.
    """

    plan: Transport
    price: Price
    port: float
    count: Callable[[Assignment], Rows]
    pipelined: bool = False
    held_sms: float = 0.0
    limits: Limits | None = None
    remembered: list[tuple[Assignment, Rows]] = field(default_factory=list)

    def __call__(self, assignment: Assignment, *, direction: str) -> Exchange:
        """Return the traffic of one layer in one direction."""
        if direction not in {FORWARD, BACKWARD}:
            raise UsageError(f"unknown direction {direction!r}{did_you_mean(direction, (FORWARD, BACKWARD))}")
        # Backward asks for the same rows as forward, so the last are remembered.
        if not self.remembered or self.remembered[0][0] is not assignment:
            self.remembered[:] = [(assignment, self.count(assignment))]
        rows, price, plan = self.remembered[0][1], self.price, self.plan
        if direction == FORWARD:
            dispatch, combine = _traffic(rows.out, price.dispatch), _traffic(rows.home, price.combine)
            counted = (price.counted_dispatch, price.counted_combine)
        else:
            combine, dispatch = _traffic(rows.out, price.gradient_out), _traffic(rows.home, price.gradient_home)
            counted = (price.counted_gradient, price.counted_gradient)
        launches = (plan.launch, None) if self.limits is None else _launches(self.limits, dispatch, combine)
        return Exchange(
            dispatch=dispatch,
            combine=combine,
            launch=launches[0],
            combine_launch=launches[1],
            barrier=plan.start == "barrier",
            pipelined=self.pipelined,
            order=plan.order,
            overhead=plan.overhead,
            in_flight=plan.in_flight,
            port=self.port if self.limits is None else self.limits.port,
            held_sms=self.held_sms,
            dispatch_counted=rows.counted * counted[0],
            combine_counted=rows.counted * counted[1],
        )


def _launches(limits: Limits, dispatch: tuple[Traffic, ...], combine: tuple[Traffic, ...]) -> tuple[float, float]:
    ways = {"dispatch": dispatch, "combine": combine}
    busiest = {way: float(max((stage.sent().max(initial=0.0) for stage in stages), default=0.0)) for way, stages in ways.items()}
    return limits.launch(busiest["dispatch"], "dispatch"), limits.launch(busiest["combine"], "combine")


def _traffic(stages: tuple[Stage, ...], each: float) -> tuple[Traffic, ...]:
    return tuple(_priced(copies, padding, each) for copies, padding in stages)


def _priced(copies: Ints, padding: Ints, each: float) -> Traffic:
    size = np.multiply(copies + padding, each, dtype=np.float64)
    size.flags.writeable = False
    return GroupTraffic.of_groups(size, copies, padding)
