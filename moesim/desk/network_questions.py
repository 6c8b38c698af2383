"""The questions of ``moesim network``: from the words of its command line to plays of traffic and what came out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError, Problem, ScenarioError, UsageError
from moesim.base.units import parse_quantity
from moesim.desk.cluster_file import ClusterFile, load_cluster
from moesim.desk.network_files import read_matrix
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.network import dispatch_of_layer, play, play_plans
from moesim.facts.cluster import Cluster
from moesim.facts.network import NetworkResult, Shortfall
from moesim.models.collective.bus_bandwidth import FACTORS
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.plan import plan_collective
from moesim.models.patterns import ELEMENT, all_to_all, incast, neighbour_to_neighbour, whole_parts
from moesim.models.sharing.modes import AUTO, EXACT
from moesim.models.shortfall import shortfall, side_by_side
from moesim.models.stages import setting_of

DEFAULT_SIZE = "256M"
"""Of a single play: large enough that latencies hardly count."""

MATRIX_FLOWS = 2**17
"""Up to so many pairs of GPUs a matrix of one's own is played exactly, unless the file or ``--mode`` says how: it is played only once."""

SHARED = frozenset({"alltoall", "all_gather", "reduce_scatter"})
"""Operations whose buffer has a part for every rank: nccl-tests rounds it down to equal parts and counts the elements of one."""
REDUCING = frozenset({"all_reduce", "reduce_scatter", "reduce"})

OPTIONS = {
    "smallest": "--from",
    "largest": "--to",
    "factor": "--factor",
    "size": "--size",
    "ep": "--ep",
    "skew": "--skew",
    "collective": "--collective",
    "algorithm": "--algorithm",
    "channels": "--channels",
    "fidelity": "--fidelity",
    "step": "--step",
    "receiver": "--receiver",
}
"""Options that belong to some of the questions only, by their field of ``Asked``."""

_TOGETHER = frozenset({"size", "ep", "skew", "collective", "algorithm", "channels", "fidelity"})
USEFUL: dict[str, frozenset[str]] = {
    "--traffic": frozenset(),
    "--layer": frozenset({"step"}),
    "--incast": frozenset({"receiver", "size"}),
    "--nodes": _TOGETHER,
    "--size": _TOGETHER,
    "": _TOGETHER | {"smallest", "largest", "factor"},
}
"""Which of them each question takes."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command line."""

    file: str
    overrides: tuple[str, ...]
    traffic: str | None
    layer: int | None
    step: int | None
    incast: str | None
    receiver: int | None
    nodes: str | None
    size: str | None
    smallest: str | None
    largest: str | None
    factor: int | None
    ep: int | None
    skew: float | None
    bins: int
    collective: str | None
    algorithm: str | None
    channels: int | None
    fidelity: str | None
    mode: str | None = None
    verify: bool = False

    @property
    def operation(self) -> str:
        """What the GPUs of a group do together."""
        return self.collective or "alltoall"

    def check(self) -> None:
        """Refuse options that would change nothing: each belongs to some of the questions only.

        Raises
        ------
        UsageError
            Naming the option.
        """
        questions = [f"--{name}" for name in ("traffic", "layer", "incast", "nodes") if getattr(self, name) is not None]
        if len(questions) > 1:
            raise UsageError(f"{' and '.join(questions)} are two questions: ask one at a time")
        question = questions[0] if questions else "--size" if self.size is not None else ""
        useful = USEFUL[question]
        for name, option in OPTIONS.items():
            if getattr(self, name) is not None and name not in useful:
                raise UsageError(f"{option} has no meaning {f'with {question}' if question else 'here'}; leave it out")
        if self.skew is not None and math.isnan(self.skew):
            raise UsageError("--skew: nan is not a number")
        if self.skew is not None and self.operation != "alltoall":
            raise UsageError(f"--skew has no meaning with --collective {self.collective}: only an all-to-all has popular destinations")
        if self.operation in {"alltoall", "sendrecv"}:
            for name in ("algorithm", "channels", "fidelity"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name} has no meaning with {self.operation}: every GPU sends straight to its partners")
        if self.verify and self.mode in {"exact", "bound"}:
            why = "there is nothing to compare" if self.mode == "exact" else "a bound is not meant to be near"
            raise UsageError(f"--verify has no meaning with --mode {self.mode}: {why}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The play that is explained, the graph it ran on, and the rows of the others."""

    name: str
    question: str
    result: NetworkResult
    why: Shortfall | None
    graph: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(asked: Asked, *, ready: Callable[[], None] = lambda: None) -> Found:
    """Read what is needed, play it, and return what came out.

    Parameters
    ----------
    asked : Asked
        What the command line says.
    ready : callable
        Called once everything was read and the first play begins.

    Raises
    ------
    MoesimError
        If a file or a word is wrong.
    """
    asked.check()
    return _find(asked, ready)


def _find(asked: Asked, ready: Callable[[], None]) -> Found:
    if asked.layer is not None:
        return _layer(asked, asked.layer, ready)
    if asked.traffic is not None:
        return _matrix(asked, asked.traffic, ready)
    if asked.incast is not None:
        return _incast(asked, asked.incast, ready)
    if asked.nodes is not None:
        return _nodes(asked, asked.nodes, ready)
    return _sizes(asked, ready)


class Bench:
    """One cluster, ready to play on; what the command line says of sharing comes before what its file says.

    Its GPUs stand in their own order, or in that of ``cluster``.
    """

    def __init__(self, file: ClusterFile, asked: Asked, cluster: Cluster | None = None) -> None:
        self.file = file
        self.sharing = replace(file.sharing, mode=asked.mode or file.sharing.mode, verify=asked.verify or file.sharing.verify)
        try:
            self.graph = file.cluster.graph()
            self.cluster = cluster or file.cluster.build()
        except PluginError as error:  # what only shows when all is put together, such as two GPUs without a route
            raise ScenarioError([Problem(file=asked.file, path="cluster", message=str(error))]) from None
        self.latency = self.cluster.route_latency()
        self._beside = side_by_side(self.graph, self.cluster)

    def play(self, stages: Sequence[ArrayLike], **more: Any) -> NetworkResult:
        """Let traffic run; see :func:`moesim.engine.network.play`."""
        return play(self.cluster, stages, sharing=self.sharing, **more)

    def explained(self, result: NetworkResult) -> tuple[NetworkResult, Shortfall | None]:
        """Return a result, and why it took so long."""
        return result, shortfall(result.asked, self.cluster, result.finish, beside=self._beside)


def _bench(asked: Asked, *more: str) -> Bench:
    return Bench(load_cluster(asked.file, (*asked.overrides, *more)), asked)


def _matrix(asked: Asked, path: str, ready: Callable[[], None]) -> Found:
    bench = _bench(asked)
    matrix = read_matrix(path, bench.cluster.gpus)
    if asked.mode is None and bench.sharing.mode == AUTO and np.count_nonzero(matrix) <= MATRIX_FLOWS:
        bench.sharing = replace(bench.sharing, mode=EXACT)
    ready()
    notes = [f"the diagonal of {path} is ignored: those bytes stay on their GPU"] if matrix.diagonal().any() else []
    result, why = bench.explained(bench.play([matrix], bins=asked.bins))
    return Found(name=bench.file.name, question=f"traffic of {path}", result=result, why=why, graph=bench.graph, notes=notes)


def _layer(asked: Asked, layer: int, ready: Callable[[], None]) -> Found:
    read = cache(read_trace)
    scenario = load_scenario(asked.file, asked.overrides, read_trace=read)
    exchange = dispatch_of_layer(scenario, layer, step=asked.step or 0, read_trace=read)
    file = ClusterFile(name=scenario.name, seed=scenario.seed, cluster=scenario.cluster, sharing=scenario.sharing)
    bench = Bench(file, asked, setting_of(scenario, read).cluster)
    stages = [stage.bytes for stage in exchange.dispatch]
    ready()
    result, why = bench.explained(bench.play(stages, ranks=scenario.parallel.ep, together=exchange.pipelined, bins=asked.bins))
    question = f"dispatch of MoE layer {layer}, step {asked.step or 0}, by exchange {type(scenario.exchange).kind}"
    notes = ["this is the time of the bytes: launches, waiting for slow peers and costs per message are part of moesim run"]
    return Found(name=scenario.name, question=question, result=result, why=why, graph=bench.graph, notes=notes)


def _incast(asked: Asked, words: str, ready: Callable[[], None]) -> Found:
    bench = _bench(asked)
    size, receiver = _size("--size", asked.size or DEFAULT_SIZE), asked.receiver or 0
    rows = []
    counts = _counts("--incast", words)
    ready()
    for senders, bins in zip(counts, _bins(asked, counts), strict=True):
        result, why = bench.explained(bench.play([incast(bench.cluster, receiver, senders, size)], bins=bins))
        rows.append(
            {
                "senders": senders,
                "size": int(size),
                "time_s": result.finish,
                "rate_per_sender": size / result.finish,
                "rate": senders * size / result.finish,
                "bottleneck": _name(bench, why),
            }
        )
    question = f"{_shown(size)} from each sender to GPU {receiver}, senders of other nodes first"
    return Found(name=bench.file.name, question=question, result=result, why=why, graph=bench.graph, rows=rows)


def _nodes(asked: Asked, words: str, ready: Callable[[], None]) -> Found:
    size = _size("--size", asked.size or DEFAULT_SIZE)
    rows = []
    counts = _counts("--nodes", words)
    benches = [_bench(asked, f"cluster.nodes={nodes}") for nodes in counts]
    ready()
    for nodes, bench, bins in zip(counts, benches, _bins(asked, counts), strict=True):
        result, why = _together(bench, asked, size, bins=bins)
        rows.append(
            {
                "nodes": nodes,
                "gpus": bench.cluster.gpus,
                "size": int(size),
                "time_s": result.finish,
                "algbw": result.algbw,
                "busbw": result.busbw,
                "port_class": why.port_class if why else None,
                "share_of_port": why.share_of_port if why else None,
                "bottleneck": _name(bench, why),
                "largest": _largest(why),
            }
        )
    question = f"{_operation(asked)} of {_shown(size)} per GPU{_kind(asked)}, by number of nodes"
    return Found(name=bench.file.name, question=question, result=result, why=why, graph=bench.graph, rows=rows)


def _sizes(asked: Asked, ready: Callable[[], None]) -> Found:
    bench = _bench(asked)
    ranks = asked.ep or bench.cluster.gpus
    if asked.size is not None:
        wanted = [_size("--size", asked.size)]
    else:
        wanted = list(_steps(_size("--from", asked.smallest or "1K"), _size("--to", asked.largest or "1G"), asked.factor or 2))
    sizes = [whole_parts(size, ranks if asked.operation in SHARED else 1) for size in wanted]
    if not sizes[-1]:
        raise UsageError(f"{_shown(wanted[-1])} are less than one element of {ELEMENT} B for each of {ranks} ranks: choose larger sizes")
    rows = []
    ready()
    for size, bins in zip(sizes, _bins(asked, sizes), strict=True):
        if size:  # nccl-tests has nothing to send either where a part is less than one element
            result, why = _together(bench, asked, size, bins=bins)
            count = size // ELEMENT // (ranks if asked.operation in SHARED else 1)
            redop = "sum" if asked.operation in REDUCING else "none"
            row: dict[str, Any] = {
                "collective": asked.operation,
                "redop": redop,
                "size": size,
                "count": count,
                "time_s": result.finish,
                "algbw": result.algbw,
                "busbw": result.busbw,
            }
            rows.append({**row, "share_of_port": why.share_of_port if why else None, "bottleneck": _name(bench, why)})
    gpus, nodes = bench.cluster.gpus, bench.cluster.nodes
    question = f"{_operation(asked)} among {gpus} GPU{'s' * (gpus != 1)} in {nodes} node{'s' * (nodes != 1)}{_kind(asked)}"
    return Found(name=bench.file.name, question=question, result=result, why=why, graph=bench.graph, rows=rows)


def _bins(asked: Asked, rows: Sequence[Any]) -> list[int]:
    """Only the last row is looked at over time."""
    return [*[1] * (len(rows) - 1), asked.bins]


def _together(bench: Bench, asked: Asked, size: float, *, bins: int) -> tuple[NetworkResult, Shortfall | None]:
    """Let every group do the operation that was asked for."""
    gpus = bench.cluster.gpus
    ranks = asked.ep or gpus
    if asked.operation == "alltoall":
        matrix = all_to_all(gpus, ranks, size, skew=asked.skew or 0.0, seed=bench.file.seed)
        return bench.explained(bench.play([matrix], ranks=ranks, bins=bins))
    if asked.operation == "sendrecv":
        return bench.explained(bench.play([neighbour_to_neighbour(gpus, ranks, size)], ranks=ranks, bins=bins, bus_factor=1.0))
    if gpus % ranks:
        raise UsageError(f"{gpus} GPUs do not divide into groups of {ranks} ranks")
    plans = [
        plan_collective(
            asked.operation,
            asked.algorithm or "ring",
            size,
            ranks=range(first, first + ranks),
            node_of=bench.cluster.node_of,
            channels=asked.channels or 0,
        )
        for first in range(0, gpus, ranks)
    ]
    if asked.fidelity != "steps":
        plans = [pipelined(plan, bench.latency) for plan in plans]
    factor = FACTORS[asked.operation](ranks)
    return bench.explained(play_plans(bench.cluster, plans, bus_factor=factor, bins=bins, sharing=bench.sharing))


def _operation(asked: Asked) -> str:
    """Return the operation in words, and how it is done."""
    if asked.operation in {"alltoall", "sendrecv"}:
        return asked.operation
    return f"{asked.operation} ({asked.algorithm or 'ring'}, {asked.fidelity or 'pipelined'})"


def _kind(asked: Asked) -> str:
    return (f", in groups of {asked.ep}" if asked.ep else "") + (
        f", popularity of destinations log-normal with sigma {asked.skew:g}" if asked.skew else ""
    )


def _name(bench: Bench, why: Shortfall | None) -> str | None:
    return None if why is None else bench.cluster.link_names[why.bottleneck]


def _largest(why: Shortfall | None) -> str | None:
    if why is None:
        return None
    name = max(why.factors, key=lambda factor: why.factors[factor])
    return f"{name} x {why.factors[name]:.2f}"


def _steps(smallest: float, largest: float, factor: int) -> Iterator[float]:
    if largest < smallest:
        raise UsageError(f"--to ({_shown(largest)}) is less than --from ({_shown(smallest)})")
    size = smallest
    while size <= largest:
        yield size
        size *= factor


def _size(option: str, text: str) -> float:
    """Return bytes: a bare number or one with K, M or G counts as in nccl-tests (powers of 1024), otherwise a unit stands there."""
    match = re.fullmatch(r"\s*(\d+)\s*([kKmMgG]?)\s*", text)
    if match:
        size = float(match[1]) * 1024.0 ** " kmg".index(match[2].lower() or " ")
    else:
        try:
            size = parse_quantity(text, "B")
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
    if not 1 <= size <= 1e15:
        raise UsageError(f"{option}: {text!r} is out of range: a buffer holds from 1 B to 1 PB")
    return size


def _shown(size: float) -> str:
    """Return bytes in binary units, as nccl-tests counts them, where that is shorter."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale and size % (scale / 4) == 0:
            return f"{size / scale:g} {unit}"
    return f"{size:,.0f} B"


def _counts(option: str, words: str) -> list[int]:
    counts = []
    for word in words.split(","):
        if not re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*", word):
            raise UsageError(f"{option}: {word.strip()!r} is not a whole number from 1; write for example {option} 1,2,4,8")
        counts.append(int(word))
    return counts
