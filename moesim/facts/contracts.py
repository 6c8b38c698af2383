"""The contract of each plug-in slot: what a plug-in's ``begin`` returns, and what it must obey.

A plug-in is a frozen dataclass (its fields are its YAML keys) registered with :func:`moesim.base.registry.register`. State of a run
lives in what ``begin(setting)`` returns, so two runs never share any. :mod:`moesim.testing` holds one check per slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.facts.batch_plan import BatchPlan
from moesim.facts.cluster import Cluster
from moesim.facts.model import MoeModel
from moesim.facts.placement import Placement
from moesim.facts.program import Program
from moesim.facts.record import Table
from moesim.facts.routing import Assignment, Kept, LayerRouting, Routing
from moesim.facts.scenario import Scenario, Workload
from moesim.facts.traffic import Exchange


class Topology(Protocol):
    """A cluster. ``graph`` draws it; ``build`` flattens it; every pair of GPUs has a route."""

    def graph(self) -> nx.DiGraph:
        """Return nodes ``gpu:0`` … and switches; edges carry ``bandwidth``, ``latency``, ``name`` and ``link_class``."""
        ...

    def build(self) -> Cluster:
        """Return the arrays."""
        ...


class Draw(Protocol):
    """What ``begin`` of a source returns. Its numbers depend on ``seed`` and ``step`` alone, never on a policy (L9)."""

    def __call__(self, step: int) -> Routing:
        """Return the routing of one step over all G GPUs; every token has distinct experts; ``setting.token_start(step)`` cuts them."""
        ...


class Choose(Protocol):
    """What ``begin`` of a gate returns: the choices that the router makes of its scores."""

    def __call__(self, routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
        """Return a routing with ids and weights."""
        ...


@runtime_checkable
class Learn(Protocol):
    """What a gate's callable may also have: it is then told what became of its choices, before it is asked about the next step."""

    def learn(self, kept: Kept, *, step: int, moe_layer: int) -> None:
        """Take note of what the capacity rule left of one layer; it may change the choices of later steps only (L12)."""
        ...


class Limit(Protocol):
    """What ``begin`` of a capacity rule returns. Kept and dropped routes add up to the routes it was given (L1)."""

    def __call__(self, routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:
        """Return what is kept."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a placement policy may see when it plans: the past (law L12).

    ``loads`` is int[steps so far, L, E], routes to each logical expert before drops, oldest first. ``recent`` holds the chosen routes of
    the last steps, oldest first: as many steps as the plan's attribute ``look_back`` asks for, none if it has no such attribute.
    """

    step: int
    loads: Ints
    placement: Placement | None
    recent: Sequence[Sequence[LayerRouting]] = ()


class Plan(Protocol):
    """What ``begin`` of a placement returns.

    It may have an attribute ``continues``: true while its answer goes on with an earlier plan, so that no planner has to work for it.
    """

    def __call__(self, view: View) -> Placement | None:
        """Return the placement from this step on, or None to keep the present one; the first call must return one."""
        ...


@runtime_checkable
class PlanBatch(Protocol):
    """What a placement's callable may also have: it then places the experts of every layer anew, from the routes of the batch at hand.

    The placement that it returns when called as :class:`Plan` is where the weights live; ``for_batch`` says which of them are copied
    where for one layer of one step, and which copy computes each route. The scenario's dispatch is not asked.
    """

    def for_batch(self, kept: Kept, *, step: int, moe_layer: int) -> BatchPlan:
        """Return the plan of one layer of one step; layers and steps come in order."""
        ...


class Bind(Protocol):
    """What ``begin`` of a dispatch returns: which replica each route uses."""

    def __call__(self, kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:
        """Bind every kept route to one slot that holds its expert, in the source's own group."""
        ...


class Carry(Protocol):
    """What ``begin`` of an exchange returns."""

    def __call__(self, assignment: Assignment, *, direction: str) -> Exchange:
        """Return the traffic of one layer in one direction (``forward`` or ``backward``)."""
        ...


class Kernels(Protocol):
    """What ``begin`` of a compute model returns. Times are at least 0 and do not fall when work grows."""

    basis: str

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        """Return the seconds of kernels that do ``flops`` operations in ``dtype`` and move ``moved`` bytes; elementwise, 0 for no work."""
        ...

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G], the seconds of the routed experts of one layer; ``rows`` is int[G, slots of a GPU], rows per local expert."""
        ...


class Schedule(Protocol):
    """A schedule itself: it turns a model and a workload into a program."""

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What metrics are computed from: the tables of the measured steps, and what the run was about.

    The tables and their columns are described in ``docs/reference/results.md``.
    """

    scenario: Scenario
    cluster: Cluster
    tables: Mapping[str, Table]
    bounds: Mapping[str, NDArray[np.float64]]

    @property
    def steps(self) -> Ints:
        """Return the numbers of the measured steps, increasing."""
        return np.asarray(self.tables["steps"]["step"])


class Metric(Protocol):
    """A function of the record: one sample per measured step. The first line of its docstring is its definition for users.

    ``better`` is ``lower``, ``higher`` or ``neither``; ``rests_on`` holds words among ``compute``, ``network``, ``routing`` and
    ``accounting`` (of memory). An optional class variable ``summary`` says how samples become one value: ``mean`` (with an interval, the
    default), ``max``, or ``whole`` for one number of the whole run.
    """

    unit: ClassVar[str]
    better: ClassVar[str]
    rests_on: ClassVar[tuple[str, ...]]

    def measure(self, record: Record) -> Floats:
        """Return float[measured steps]; NaN where the record cannot tell."""
        ...
