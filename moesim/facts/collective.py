"""A collective operation as stages of transfers between two GPUs: who sends which piece to whom, and after what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Flag, Whole
from moesim.facts.arrays import Floats, Ints, frozen

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "send")
"""What a group can be asked for. ``send`` is one GPU to one other."""

ALGORITHMS = ("ring", "tree", "hierarchical", "direct")
"""How it is done."""

OPERATIONS_OF = {
    "ring": ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"),
    "tree": ("all_reduce", "broadcast", "reduce"),
    "hierarchical": ("all_reduce", "all_gather", "reduce_scatter"),
    "direct": OPERATIONS,
}
"""What each algorithm can do."""

FIDELITIES = ("pipelined", "steps")
"""Whether all bytes of a neighbour are one flow, or every dependent step is played."""

MOST_CHANNELS = 64
"""A library uses a few SMs per channel: a larger number is a slip of the keyboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Transfers that a GPU may have under way at the same time.

    A transfer starts when both of its GPUs have ended their own transfers of all earlier stages. A GPU without a transfer in a stage
    passes through it at once.

    Parameters
    ----------
    source, destination : int[F]
        GPUs; never the same.
    bytes : float[F]
        More than 0.
    piece : int[F]
        Which piece of the message a transfer carries, for following the data; empty where transfers carry several.
    adds : bool
        Whether the destination adds the piece to its own (a reduction) or keeps it as it comes.
    phase : int
        Stages of one phase hand pieces on from GPU to GPU and may be merged into a pipeline; a phase begins when the one before is over.
    together : int[ranks]
        For each rank of the plan the lowest rank of those it is joined with: none of them starts before the last has come to the
        stage. Empty: each pair starts on its own.
    lag : float[ranks]
        Seconds that each rank of the plan needs after its last byte of this stage: latencies of the hops that a merged pipeline no
        longer shows. Empty: none.
    """

    source: Ints
    destination: Ints
    bytes: Floats
    piece: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    adds: bool = False
    phase: int = 0
    together: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lag: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        for name, dtype in (
            ("source", np.int64),
            ("destination", np.int64),
            ("bytes", np.float64),
            ("piece", np.int64),
            ("together", np.int64),
            ("lag", np.float64),
        ):
            object.__setattr__(self, name, frozen(getattr(self, name), dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectivePlan:
    """One operation among the GPUs of a group.

    Parameters
    ----------
    operation : str
        One of ``OPERATIONS``.
    algorithm : str
        One of ``ALGORITHMS``.
    ranks : int[n]
        The GPUs that take part; rank r of the group is ``ranks[r]``.
    bytes : float
        The size S of the operation as nccl-tests counts it: the whole vector. Each rank of an all-gather brings S / n of it, each
        rank of a reduce-scatter keeps S / n, and each rank of an all-to-all sends S / n to every other.
    stages : tuple of Stage
        In order.
    pieces : float[pieces]
        Bytes of each piece of the message.
    home : int[pieces]
        The rank of the group (0 to n - 1) that a piece belongs to: where it ends (``reduce_scatter``, ``reduce``, ``all_to_all``,
        ``send``) or where it begins (``all_gather``, ``broadcast``); of no consequence in an ``all_reduce``.
    root : int
        The rank of the group that a ``broadcast`` or ``send`` starts from and a ``reduce`` ends at.
    channels : int
        Rings or trees that share the bytes.
    fidelity : str
        One of ``FIDELITIES``.
    """

    operation: str
    algorithm: str
    ranks: Ints
    bytes: float
    stages: tuple[Stage, ...]
    pieces: Floats
    home: Ints
    root: int = 0
    channels: int = 1
    fidelity: str = "steps"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", frozen(self.ranks, np.int64))
        object.__setattr__(self, "pieces", frozen(self.pieces, np.float64))
        object.__setattr__(self, "home", frozen(self.home, np.int64))

    def traffic(self, gpus: int) -> Floats:
        """Return float[G, G], the bytes from each GPU to each other over all stages."""
        total = np.zeros((gpus, gpus))
        source, destination, size = self.flows()
        total[source, destination] = size
        return total

    def flows(self) -> tuple[Ints, Ints, Floats]:
        """Return the sources, the destinations and the bytes over all stages of all pairs that have any, in ascending order."""
        if not self.stages:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
        source, destination, size = (
            np.concatenate([getattr(stage, name) for stage in self.stages]) for name in ("source", "destination", "bytes")
        )
        gpus = int(max(source.max(initial=0), destination.max(initial=0))) + 1
        pairs, flow = np.unique(source * gpus + destination, return_inverse=True)
        source, destination = np.divmod(pairs, gpus)
        return source, destination, np.bincount(flow.ravel(), weights=size, minlength=len(pairs)).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCalls:
    """How the copies of a model keep their weights equal during training.

    Parameters
    ----------
    operation : str
        What happens to gradients: ``all_reduce``, or ``reduce_scatter`` where each GPU updates its share of the weights only (ZeRO).
    gather_parameters : bool
        Whether the updated weights are all-gathered at the end of the step; goes with ``reduce_scatter``.
    algorithm : str
        ``ring``, ``tree``, ``hierarchical`` or ``direct``.
    fidelity : str
        ``pipelined``: all that a GPU sends to a neighbour is one flow. ``steps``: every dependent step is played.
    channels : int
        Rings or double trees side by side; 0 for as many as use every network card of a node.
    gradient_dtype : str
        Of a gradient on the wire.
    """

    operation: Annotated[str, Choice(("all_reduce", "reduce_scatter"))] = "all_reduce"
    gather_parameters: Flag = False
    algorithm: Annotated[str, Choice(ALGORITHMS)] = "ring"
    fidelity: Annotated[str, Choice(FIDELITIES)] = "pipelined"
    channels: Annotated[int, Whole(0, MOST_CHANNELS)] = 0
    gradient_dtype: Annotated[str, Choice(("fp32", "bf16"))] = "fp32"

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS_OF[self.algorithm]:
            known = " or ".join(name for name in ALGORITHMS if self.operation in OPERATIONS_OF[name])
            raise FieldError("algorithm", f"there is no {self.algorithm} algorithm for {self.operation}: use {known}")
        if self.gather_parameters and self.operation == "all_reduce":
            raise FieldError(
                "gather_parameters",
                "there is nothing to gather after an all_reduce, for every GPU updates all weights: use operation reduce_scatter with it",
            )
