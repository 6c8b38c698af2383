"""What a profile says of an exchange's kernels: how long they take before the first byte, and what a GPU sends at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.base.errors import PluginError, did_you_mean
from moesim.base.registry import plugin
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.profile import Profile, Section
from moesim.facts.scenario import Scenario, Setting

HARDLY = 0.05
"""Share of its rate that an exchange may lose beside experts before a run says that this is not simulated."""

DEFAULT_SMS = 20
"""Streaming multiprocessors of DeepEP's normal kernels (``Buffer.num_sms``) where ``communication_sms`` is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the kernels of one run add to the links.

    Parameters
    ----------
    port : float
        B/s that a GPU sends, and receives, at most. One number for both ways: where the kernels of dispatch and combine differ, the mean
        over the bytes of both.
    launch : callable
        From the bytes that the busiest GPU sends, and ``dispatch`` or ``combine``, to the seconds before its first byte.
    """

    port: float
    launch: Callable[[float, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a group of ranks lies: nodes, ranks of it on each, peaks of the data sheet."""

    ranks: int
    nodes: int
    local: int
    link: float
    nic: float
    memory: float
    asked: dict[str, float] = field(default_factory=dict)


def place_of(cluster: Cluster, ranks: int) -> Place:
    """Return where the first expert-parallel group of a cluster lies."""
    nodes = len(np.unique(cluster.node_of[:ranks]))
    gpu = cluster.gpu
    return Place(ranks=ranks, nodes=nodes, local=max(ranks // nodes, 1), link=gpu.nvlink, nic=gpu.nic, memory=gpu.memory_bandwidth)


def section_named(profile: Profile, names: tuple[str, ...]) -> Section:
    """Return the first section of a profile that goes by one of some names.

    Raises
    ------
    PluginError
        If there is none.
    """
    for name in names:
        if name in profile.sections:
            return profile.sections[name]
    raise PluginError(
        f"exchange.profile: the profile {profile.name!r} has no section {names[0]!r}{did_you_mean(names[0], profile.sections)}; "
        "'moesim calibrate' on a table of these kernels makes one"
    )


def sections_of(profile: Profile, kernel: str, nodes: int) -> dict[str, Section]:
    """Return the sections of dispatch and combine of a kernel: those measured between nodes where a group crosses them."""
    order = ("_internode", "") if nodes > 1 else ("", "_internode")
    return {way: section_named(profile, tuple(f"{kernel}{where}.{way}" for where in order)) for way in ("dispatch", "combine")}


def nccl_limits(profile: Profile, setting: Setting) -> Limits:
    """Return the limits of NCCL's all-to-all; see :class:`moesim.models.fitted.nccl_all_to_all.NcclAllToAll`."""
    from moesim.models.fitted.nccl_all_to_all import NcclAllToAll

    values = NcclAllToAll.of_section(section_named(profile, ("nccl_all_to_all",))).values()
    place = place_of(setting.cluster, setting.parallel.ep)
    beyond = max(place.ranks - 2, 0)
    # With a link that is never in the way, what is left of the model is all that does not depend on the link.
    still = {**values, "link_efficiency": 1e9}

    def launch(sent: float, way: str) -> float:
        del way
        whole = sent * place.ranks / max(place.ranks - 1, 1)  # the model counts a GPU's share for itself too
        return float(
            NcclAllToAll.seconds_of(
                still, _row(num_gpus=place.ranks, bytes_per_rank=whole, link_bandwidth=place.link, memory_bandwidth=place.memory)
            )[0]
        )

    return Limits(port=values["link_efficiency"] * place.link / (1.0 + values["fan_in"] * beyond), launch=launch)


def all_to_all_limits(profile: Profile, setting: Setting) -> Limits:
    """Return the limits of the machine's own all-to-all if the profile has one, otherwise those of NCCL's.

    Of several ways to post, the one comes first whose receives are posted before any send, as this exchange has it.
    """
    from moesim.models.fitted.own_all_to_all import OwnAllToAll

    own = sorted((name for name in profile.sections if name.startswith("own_all_to_all")), key=lambda name: ("library" in name, name))
    if not own:
        return nccl_limits(profile, setting)
    values = OwnAllToAll.of_section(profile.sections[own[0]]).values()
    ranks = setting.parallel.ep
    still = {**values, "port_rate": 1e30}

    def launch(sent: float, way: str) -> float:
        del way
        return float(OwnAllToAll.seconds_of(still, _row(num_gpus=ranks, port_bytes=sent))[0])

    return Limits(port=values["port_rate"] / (1.0 + values["fan_in"] * max(ranks - 2, 0)), launch=launch)


def slowing(profile: Profile | None, held: float) -> float:
    """Return by what share experts are slowed beside an exchange: that of the SMs it holds, or, where none are given, as was measured."""
    found = [] if profile is None or held else [section for name, section in profile.sections.items() if name.startswith("overlap")]
    return min(found[0].values().get("compute_lost", 0.0), 0.99) if found else held


def low_latency_limits(profile: Profile, setting: Setting, message: dict[str, float]) -> Limits:
    """Return the limits of DeepEP's low-latency kernels; ``message`` holds the bytes of one copy each way.

    The crowding of cards beyond two nodes slows what precedes the first byte and the ports; cards themselves share by the simulation.
    """
    from moesim.models.fitted.deepep_low_latency import BLOCKS, DeepEpLowLatency, crowding

    place, model = place_of(setting.cluster, setting.parallel.ep), setting.model
    sections = sections_of(profile, "deepep_low_latency", place.nodes)
    values = {way: DeepEpLowLatency.of_section(section).values() for way, section in sections.items()}
    crowd = {way: float(crowding(np.asarray([float(place.nodes)]), given["contention"])[0]) for way, given in values.items()}
    seconds = {}
    for way, given in values.items():
        kernel = min(model.experts, BLOCKS) * given["block_bandwidth"] * (place.ranks - 1) / place.ranks
        seconds[way] = message[way] * crowd[way] / min(given["link_efficiency"] * place.link, kernel)

    def launch(sent: float, way: str) -> float:
        del sent
        given = values[way]
        still = given["launch"] + given["per_expert"] * model.experts + given["per_byte"] * message[way]
        return float((still + given["network_latency"] * (place.nodes > 1)) * crowd[way])

    return Limits(port=sum(message.values()) / sum(seconds.values()), launch=launch)


def normal_limits(profile: Profile, setting: Setting, message: dict[str, float], sms: int | None) -> Limits:
    """Return the limits of DeepEP's normal kernels on ``sms`` SMs; ``message`` holds the bytes of one copy each way."""
    from moesim.models.fitted.deepep_normal import DeepEpNormal, copies

    place, model = place_of(setting.cluster, setting.parallel.ep), setting.model
    sections = sections_of(profile, "deepep_normal", place.nodes)
    shape = (float(place.nodes), float(place.local), float(model.experts), float(model.top_k))
    gpus, others = (float(each[0]) for each in copies(*(np.asarray([value]) for value in shape)))
    moved, seconds = 0.0, 0.0
    values = {way: DeepEpNormal.of_section(section).values() for way, section in sections.items()}
    for way, given in values.items():
        sent = message[way] * (gpus * (place.local - 1) / place.local + others)
        each = given["copy_cost"] + given["copy_byte_cost"] * message[way]
        work = given["token_byte_cost"] * message[way] + (gpus + others) * each
        kernel = work * (given["network_work"] if place.nodes > 1 else 1.0) / (sms or DEFAULT_SMS)
        moved += sent
        seconds += max(kernel, sent / (given["link_efficiency"] * place.link))

    def launch(sent: float, way: str) -> float:
        del sent
        given = values[way]
        return float(given["launch"] + given["per_byte"] * message[way] + given["network_latency"] * (place.nodes > 1))

    return Limits(port=moved / seconds if moved else float("inf"), launch=launch)


def _row(**values: float) -> dict[str, Floats]:
    return {name: np.asarray([float(value)]) for name, value in values.items()}


def outside_profile(exchange: Any, scenario: Scenario, cluster: Cluster) -> str:
    """Return what a user should know of a run beyond what its exchange's profile was fitted on; empty if nothing.

    Parameters
    ----------
    exchange : object
        The plug-in; one without a profile has nothing to be outside of.
    scenario, cluster
        The run.
    """
    profile: Profile | None = getattr(exchange, "fitted", None)
    if profile is None:
        return ""
    place = place_of(cluster, scenario.parallel.ep)
    quantities = {
        "num_gpus": float(place.ranks),
        "node_num": float(place.nodes),
        "gpus_per_node": float(place.local),
        "num_topk": float(scenario.model.top_k),
        "num_experts": float(scenario.model.experts),
        "tokens_per_rank": float(scenario.workload.tokens_per_gpu or np.nan),
    }
    beyond = {
        f"{name} {quantities[name]:g} (fitted on {least:g} to {most:g})"
        for section in profile.sections.values()
        if ("_internode" in section_name(profile, section)) == (place.nodes > 1) or "nccl" in section.model
        for name, (least, most) in section.fitted_range.items()
        if name in quantities and not (np.isnan(quantities[name]) or least <= quantities[name] <= most)
    }
    told = []
    if profile.gpu != cluster.gpu.name:
        told.append(
            f"it was fitted on {profile.gpu} and the cluster has {cluster.gpu.name}: launches are carried over as they are, rates by "
            "data-sheet ratios"
        )
    if beyond:
        told.append("the run lies outside its range: " + ", ".join(sorted(beyond)))
    lost = max((section.values().get("exchange_lost", 0.0) for section in profile.sections.values()), default=0.0)
    if lost > HARDLY and not isinstance(scenario.schedule, plugin("schedule", "sequential")):
        told.append(
            f"an exchange was measured to lose {100 * lost:.0f} % of its rate beside experts, and here links are slowed by other flows "
            "alone: this schedule hides less than the run says"
        )
    return f"exchange profile {profile.name!r}: {'; '.join(told)}" if told else ""


def section_name(profile: Profile, section: Section) -> str:
    """Return under which name a profile holds a section."""
    return next(name for name, held in profile.sections.items() if held is section)
