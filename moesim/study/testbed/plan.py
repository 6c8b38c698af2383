"""What the testbed shall measure, and what the engine says of it beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moesim.engine.replay import Change, Replayed
from moesim.models.bounds import link_bound
from moesim.models.topology.shaped_hosts import ShapedHosts
from moesim.study.testbed.calibration import Calibration, calibration_of
from moesim.study.testbed.patterns import matrix
from moesim.study.testbed.predict import CROWDED, MBIT, Step, crowding, exchange, hosts_of, latency_of_probe, play_step

POSTINGS = {"receives_first": False, "library": True}
DEGRADED = 0.25
"""Of its rate, on the link that changes in the middle of an exchange."""
MIDDLE = 0.4
"""Of the time that the exchange would take: then the link changes."""
PROBE = {"tokens": 16, "expert_width": 8, "top_k": 2}
"""A step so small that hardly anything but latency is left of it."""
REFERENCE_ROWS = 64
"""Rows of the expert that every rank times beside each step of a layer: how fast the cores are just then."""
SLOWDOWNS_THEN = (0.8, 1.0, CROWDED, 1.5, 2.0)
SLOWDOWNS = (0.8, 1.0, 1.2, 1.5, 2.0)
"""Of local operations, against the calibration: a step is predicted for each of them beforehand. The first are those of runs that had not
measured how much ranks slow each other down."""
INSIDE = (0.05, 0.95)
"""Quantiles of the orders of entering between which a library's all-to-all is said to lie."""
LIBRARY_TIMES = 4
"""How many times as often a library's all-to-all is repeated: who enters first is drawn anew in every call."""
ORDERS_THEN = 9
"""So many orders of entering were tried for runs whose documents hold no ``posting``."""
POSTING_PROBE = 1024
"""Bytes of a pair in the all-to-all that hardly takes more than it takes to begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricPlan:
    """A fabric; as :class:`moesim.lab.namespaces.Fabric` has it."""

    name: str
    ranks: int
    per_node: int = 0
    fast_mbit: float = 100.0
    slow_mbit: float = 0.0
    queue: str = "flow"

    def hosts(self, cores: int = 0, *, pinned: bool = True) -> ShapedHosts:
        """Return the topology that the engine plays."""
        return hosts_of(self.ranks, self.per_node, self.fast_mbit, self.slow_mbit, cores=cores, pinned=pinned)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangePlan:
    """One all-to-all.

    ``bytes_per_pair`` are those of a pair on average; rank r starts r x ``stagger_ms`` late; with ``degraded`` the link of the busiest rank
    carries a quarter from the middle on.
    """

    name: str
    fabric: str
    pattern: str
    bytes_per_pair: int
    posting: str = "receives_first"
    stagger_ms: float = 0.0
    degraded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One step of a layer, in the words of :class:`moesim.lab.job.LayerCase`."""

    name: str
    fabric: str
    tokens: int = 256
    hidden: int = 512
    expert_width: int = 512
    experts: int = 16
    top_k: int = 2
    capacity_factor: float | None = None
    drop: str = "position"
    skew: float = 0.0
    popularity: str = "in_order"
    posting: str = "receives_first"
    backward: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that one run of the testbed measures."""

    fabrics: tuple[FabricPlan, ...]
    exchanges: tuple[ExchangePlan, ...]
    layers: tuple[LayerPlan, ...]
    repeats: int

    def fabric(self, name: str) -> FabricPlan:
        """Return a fabric by its name."""
        return next(fabric for fabric in self.fabrics if fabric.name == name)


def _exchanges(fabric: FabricPlan, patterns: Sequence[str], sizes: Sequence[int], **more: Any) -> list[ExchangePlan]:
    words = "".join(f" {value}" for key, value in more.items() if key == "posting")
    words += " degraded" if more.get("degraded") else ""
    found = []
    for written in patterns:
        pattern, _, late = written.partition("@")
        for size in sizes:
            # Of adversarial patterns little is under way at once: they must be longer to be more than the first bytes of their flows.
            each = 4 * size if pattern.startswith("adv") else size
            found.append(
                ExchangePlan(
                    name=f"{fabric.name} {written} {each}{words}", fabric=fabric.name, pattern=pattern, bytes_per_pair=each,
                    stagger_ms=float(late or 0), **more,
                )
            )  # fmt: skip
    return found


def _layers(fabric: FabricPlan, skews: Sequence[float], factors: Sequence[float | None], **more: Any) -> list[LayerPlan]:
    return [
        LayerPlan(
            name=f"{fabric.name} width {more.get('expert_width', 512)} skew {skew:g} "
            + ("dropless" if factor is None else f"factor {factor:g}")
            + (" backward" if more.get("backward") else ""),
            fabric=fabric.name, skew=skew, capacity_factor=factor, **more,
        )
        for skew in skews
        for factor in factors
    ]  # fmt: skip


def quick_plan() -> Plan:
    """Return about a minute of cases: one of each sort."""
    star = FabricPlan(name="star4", ranks=4)
    nodes = FabricPlan(name="two2x2", ranks=4, per_node=2, fast_mbit=200.0, slow_mbit=100.0)
    fifo = FabricPlan(name="star4-fifo", ranks=4, queue="fifo")
    return Plan(
        fabrics=(star, fifo, nodes),
        exchanges=(
            *_exchanges(star, ("even", "zipf", "adv1", "zipf@20"), (262144,)),
            *_exchanges(star, ("zipf",), (262144,), posting="library"),
            *_exchanges(star, ("zipf",), (524288,), degraded=True),
            *_exchanges(fifo, ("even", "zipf"), (262144,)),
            *_exchanges(nodes, ("even", "dir"), (262144,)),
        ),
        layers=(*_layers(nodes, (0.0, 1.2), (None, 1.25)),),
        repeats=5,
    )


def full_plan() -> Plan:
    """Return the whole set: stars of 4 and 8, two tiers, both queues, both postings, late starts, links that change, layers.

    Links are so slow that two cores can serve all of them at their full rate, both ways: with links of twice the rate, all-to-alls that
    fill every link took 1 to 3 % longer for want of processor time.
    """
    star4 = FabricPlan(name="star4", ranks=4)
    star8 = FabricPlan(name="star8", ranks=8, fast_mbit=50.0)
    two2x4 = FabricPlan(name="two2x4", ranks=8, per_node=4, slow_mbit=50.0)
    two4x2 = FabricPlan(name="two4x2", ranks=8, per_node=2, slow_mbit=50.0)
    fifo = FabricPlan(name="star8-fifo", ranks=8, fast_mbit=50.0, queue="fifo")
    dense, skewed = ("even", "hot", "zipf", "dir", "sparse", "zipf@20"), ("adv1", "adv2")
    layers: list[LayerPlan] = []
    for fabric in (star4, star8, two2x4):
        for width in (512, 1536):
            layers += _layers(fabric, (0.0, 0.6, 1.2), (None, 1.0, 1.25, 2.0), expert_width=width)
        layers += _layers(fabric, (0.0, 1.2), (None, 1.25), backward=True)
    return Plan(
        fabrics=(star4, star8, two2x4, two4x2, fifo),
        exchanges=(
            *_exchanges(star4, (*dense, *skewed), (262144, 524288)),
            *_exchanges(star8, (*dense, *skewed), (131072, 262144)),
            *_exchanges(two2x4, dense, (131072, 262144)),
            *_exchanges(two4x2, dense, (131072, 262144)),
            *_exchanges(fifo, ("even", "hot", "zipf", "dir", "sparse", *skewed), (131072, 262144)),
            *_exchanges(star8, ("even", "hot", "zipf", "dir"), (131072,), posting="library"),
            *_exchanges(two2x4, ("even", "hot", "zipf", "dir"), (131072,), posting="library"),
            *_exchanges(star4, ("even", "zipf", "dir"), (524288,), degraded=True),
            *_exchanges(star8, ("even", "zipf", "dir"), (262144,), degraded=True),
        ),
        layers=tuple(layers),
        repeats=7,
    )


def predicted_exchange(
    case: ExchangePlan, fabric: FabricPlan, posting: float | None = 0.0, *, cores: int = 2, awake: bool = True, changing: float = 0.0
) -> dict[str, Any]:
    """Return an exchange as the measurement and the reader need it: bytes, late starts, the change of a link, what is predicted.

    ``posting`` is what the smallest all-to-all takes on this fabric, s; None for max-min sharing of links and nothing else. ``cores`` are
    those of the machine; 0 lets ranks enter a library's all-to-all one by one, as in the first runs. ``awake``: the rank whose link changes
    has just started the tools that will change it, and so is the first to start. ``changing``: so much later than it is asked to, s, a link
    has its new rate.
    """
    cluster = fabric.hosts().build()
    laws: dict[str, Any] = (
        {"wire": False, "orders": ORDERS_THEN} if posting is None else {"posting": posting, "fifo": fabric.queue == "fifo"}
    )
    sent = matrix(case.pattern, fabric.ranks, case.bytes_per_pair)
    late = (np.arange(fabric.ranks) * case.stagger_ms / 1e3).tolist()
    library = POSTINGS[case.posting]
    laws["cores"] = cores
    plain = exchange(cluster, sent, late=late, library=library, **laws)
    found: dict[str, Any] = {"kind": "exchange", **asdict(case), "bytes": sent.tolist(), "stagger_s": late, "change": None}
    answer = plain
    if case.degraded:
        rank, after, mbit = _busiest(sent), MIDDLE * plain.seconds, DEGRADED * fabric.fast_mbit
        bandwidth = mbit * MBIT * fabric.hosts().payload
        links = [cluster.link_names.index(f"rank-{way}:{rank}") for way in ("out", "in")]
        answer = exchange(
            cluster, sent, late=late, library=library, first=rank if awake and posting is not None else None, **laws,
            changes=[Change(time=after + changing, link=link, bandwidth=bandwidth) for link in links],
        )  # fmt: skip
        found["change"] = {"after_s": after, "rank": rank, "mbit": mbit}
    baselines = {"port bound": link_bound(sent.astype(np.float64), cluster)[0]}
    if case.degraded:
        baselines["no change"] = plain.seconds
    if library:
        baselines["receives first"] = exchange(cluster, sent, late=late, **laws).seconds
    if fabric.per_node:
        flat = hosts_of(fabric.ranks, 0, fabric.fast_mbit, 0.0, cores=0).build()
        baselines["no uplinks"] = exchange(flat, sent, late=late, library=library, **laws).seconds
    if library and cores:
        low, high = np.quantile(answer.tried, INSIDE)
        found |= {"mean_s": float(answer.tried.mean()), "low_s": float(low), "high_s": float(high)}
    return {**found, "predicted_s": answer.seconds, "ends_s": answer.ends.tolist(), "baselines_s": baselines}


def _busiest(sent: Any) -> int:
    """Return the rank that sends or receives most: a slower link there is one that matters."""
    return int(np.maximum(sent.sum(axis=0), sent.sum(axis=1)).argmax())


def predicted_layer(
    case: LayerPlan,
    fabric: FabricPlan,
    kept: Sequence[Sequence[int]],
    calibration: Calibration,
    probe: Mapping[str, float],
    cores: int,
    *,
    wire: bool = True,
    crowded: float | None = None,
) -> dict[str, Any]:
    """Return a step as the measurement and the reader need it.

    Parameters
    ----------
    case, fabric : LayerPlan, FabricPlan
    kept : int[ranks, experts]
        Rows that the gate and the capacity rule will leave.
    calibration : Calibration
        Of the local operations, alone.
    probe : mapping
        ``counts_s`` and ``all_to_all_s`` of the smallest step on this fabric.
    cores : int
        Of the machine.
    wire : bool
        Whether links carry acknowledgements as well.
    crowded : float or None
        What the reference takes while all ranks are at it, s; None if nobody measured it.
    """
    hosts = fabric.hosts(cores)
    step = Step(
        kept=np.array(kept), hidden=case.hidden, width=case.expert_width, tokens=case.tokens, top_k=case.top_k, backward=case.backward,
        counts=probe["counts_s"], latency=latency_of_probe(hosts, probe["all_to_all_s"], case.hidden), library=POSTINGS[case.posting],
    )  # fmt: skip
    # What is predicted, and what simpler models say: (links and cores, step).
    models = {
        "": (hosts.build(), step),
        "balanced load": (hosts.build(), step.balanced()),
        "no core sharing": (fabric.hosts(0).build(), step),
    }
    if fabric.per_node:
        models["no uplinks"] = (hosts_of(fabric.ranks, 0, fabric.fast_mbit, 0.0, cores=cores).build(), step)
    reference = float(calibration.seconds("ffn", f"{case.hidden}x{case.expert_width}", REFERENCE_ROWS))
    usual = crowded / reference if crowded else crowding(fabric.ranks, cores) if wire else 1.0

    def play(name: str, slowdown: float) -> Replayed:
        return play_step(*models[name], calibration.slower(slowdown), wire=wire)

    played = play("", usual)
    ends = {name: float(played.ends[number].max()) for number, name in enumerate(played.names)}
    slowdowns = SLOWDOWNS if crowded else SLOWDOWNS_THEN
    slower = {name: [play(name, slowdown).seconds for slowdown in slowdowns] for name in models}
    return {"kind": "layer", **asdict(case), "kept": [list(row) for row in kept], "predicted_s": played.seconds, "phase_ends_s": ends,
            "baselines_s": {name: play(name, usual).seconds for name in models if name}, "reference_s": reference, "slowdown": usual,
            "at_slowdown": {"slowdown": list(slowdowns), "predicted_s": slower.pop(""), "baselines_s": slower}}  # fmt: skip


def predictions(plan: Plan, known: Mapping[str, Any], cores: int) -> list[dict[str, Any]]:
    """Return every case of a plan with its prediction.

    Parameters
    ----------
    plan : Plan
    known : mapping
        ``calibration`` (operations alone), ``kept`` (rows of each layer case), ``probes`` (latencies of each fabric with layers),
        ``posting`` (what the smallest all-to-all takes on each fabric with exchanges, s), ``changing`` (how late a link changes, s, by
        fabric) and ``crowded`` (what the reference takes while all ranks are at it, s, by fabric and shape). Documents of before
        ``posting`` was measured have none: then links are shared max-min fairly and nothing else, as they were predicted. Without
        ``crowded``, ranks slow each other down by what was found on the first testbed.
    cores : int
        Of the machine.
    """
    calibration = calibration_of(known["calibration"]) if plan.layers else Calibration({})
    posting, crowded = known.get("posting"), known.get("crowded")
    awake, at_once = crowded is not None, cores if crowded is not None else 0
    found = [
        predicted_exchange(
            case, plan.fabric(case.fabric), None if posting is None else posting[case.fabric], cores=at_once, awake=awake,
            changing=known.get("changing", {}).get(case.fabric, 0.0),
        )
        for case in plan.exchanges
    ]  # fmt: skip
    found += [
        predicted_layer(
            case,
            plan.fabric(case.fabric),
            known["kept"][case.name],
            calibration,
            known["probes"][case.fabric],
            cores,
            wire=posting is not None,
            crowded=None if crowded is None else crowded[case.fabric][f"{case.hidden}x{case.expert_width}"],
        )
        for case in plan.layers
    ]
    return found
