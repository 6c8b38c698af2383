"""A GPU: every number with its unit, direction, source and date; peak kept apart from achievable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.base.fields import Bytes, BytesPerSecond, Count, FlopsPerSecond, Text, section


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a data sheet or a measurement.

    ``direction`` is ``one way``, ``both ways`` or empty; ``density`` is ``dense``, ``sparse`` or empty; ``kind`` is ``peak`` or
    ``achievable``; ``basis`` is a word of :data:`moesim.facts.evidence.STRENGTH`; ``date`` is when the source was read. ``experiment``
    says what an achievable figure was measured with, a word of :data:`moesim.facts.gpu_figures.EXPERIMENTS`: figures of different
    experiments answer different questions and are never exchanged for each other.
    """

    quantity: str
    value: float
    unit: str
    direction: str = ""
    density: str = ""
    kind: str = "peak"
    basis: str = "datasheet"
    experiment: str = ""
    source: str
    date: str


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the models see it: peaks of dense arithmetic, one direction of each link.

    ``flops`` maps a dtype (``bf16``, ``fp8``, ``fp4``) to flop/s; ``nvlink`` is the scale-up bandwidth out of (and, separately,
    into) the GPU, whatever the vendor calls it; ``nic`` the scale-out bandwidth of its network card.
    """

    name: Text
    flops: Mapping[str, FlopsPerSecond]
    memory: Bytes
    memory_bandwidth: BytesPerSecond
    nvlink: BytesPerSecond
    nic: BytesPerSecond
    sms: Count
