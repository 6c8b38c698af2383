"""Dispatch and combine as the authors of libraries publish them: DeepEP's own rows are predicted, other libraries' rows say why not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.exchange.payload import payload_bytes
from moesim.models.fitted.deepep_low_latency import DeepEpLowLatency, message_bytes
from moesim.models.fitted.deepep_normal import DeepEpNormal, copies, row_bytes
from moesim.models.fitted.intervals import interval, spread
from moesim.models.fitted.nccl_all_to_all import NcclAllToAll
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.machines import in_rack, peaks, preset_of, unknown_system, whose_section
from moesim.study.validation.table_kind import Prediction, prediction, register_table

HIDDEN, TOP_K, EXPERTS, NODE = 7168, 8, 256, 8
"""The shape of DeepSeek-V3, which all these tables share by their headers, and GPUs of a node."""

SMS = 20
"""Streaming multiprocessors of DeepEP's normal kernels where a table does not say: the library's default (``Buffer.num_sms``)."""

OTHER = "no measurement of the library {name!r} beside this one row: a model of another library's kernels does not hold for it"
EFA = "DeepEP over EFA: no table of these kernels over that network was fitted"
PEER = 7e-6
"""Seconds that NCCL's all-to-all spends on each peer on another node: the one row with next to no bytes (1 token, EP 16: 110 us) less one
node's 24 us and the
bytes over the card, shared out over 8 such peers, less the first one's 16 us of a send between nodes. One row; assumed for all."""

FIRST = 16e-6
"""Seconds of a small send between two nodes of H100 (``vidur_p2p_allreduce.csv``, 2048 B)."""

NIC_SHARE = 0.88
"""Of a card's peak that large all-to-alls reach (:data:`moesim.facts.gpu_figures.HOPPER_NIC`)."""


def _one(**values: float) -> dict[str, NDArray[Any]]:
    return {name: np.asarray([float(value)]) for name, value in values.items()}


def _nodes(ranks: Any) -> Any:
    """Return how many nodes so many ranks fill; the last one may be partly empty."""
    return -(-ranks // NODE)


class PublishedTable(ABC):
    """What the tables share: one row at a time, each with the kernel that it is of, or why there is none."""

    quantity: ClassVar[str] = "time"
    limited: ClassVar[bool] = False
    """Whether normal kernels were measured with group-limited routing."""

    @abstractmethod
    def kernel_of(self, rows: Rows, index: int) -> tuple[str, str]:
        """Return the kernel of one row (``low_latency``, ``normal`` or ``nccl``) and the reason if there is none."""

    @abstractmethod
    def case_of(self, rows: Rows, index: int) -> tuple[str, str, int, float, int]:
        """Return preset, operation, EP, tokens per rank and communication SMs of one row."""

    @abstractmethod
    def seconds(self, rows: Rows) -> Floats:
        """Return what was measured."""

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return kernel and place; ``other library`` where there is no kernel."""
        found = []
        for index in range(count(rows)):
            kernel, reason = self.kernel_of(rows, index)
            where = "intra_node" if self.case_of(rows, index)[2] <= NODE else "inter_node"
            found.append("other library" if reason else f"{kernel} {where}")
        return np.asarray(found, dtype=np.str_)

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Return nothing: these rows are for comparing, a handful of each kind in several laboratories."""
        del rows
        return {}

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the port bound at data-sheet rates, one copy per choice."""
        values = np.full(count(rows), np.nan)
        for index in range(count(rows)):
            preset, op, ranks, tokens, _ = self.case_of(rows, index)
            nodes, local = _nodes(ranks), min(ranks, NODE)
            sent = tokens * TOP_K * float(message_bytes(np.asarray([HIDDEN]), op)[0])
            link, card = (float(peaks(np.asarray([preset]), name)[0]) for name in ("nvlink", "nic"))
            values[index] = max(sent * (local - 1) / (local * nodes) / link, sent * (nodes - 1) / nodes / card)
        return "port bound, one copy per choice", values

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict the rows of kernels that were fitted elsewhere."""
        size = count(rows)
        values, low, high = (np.full(size, np.nan) for _ in range(3))
        outside = np.zeros(size, dtype=bool)
        reasons, basis = (np.asarray([text] * size, dtype=object) for text in ("", "datasheet"))
        for index in range(size):
            kernel, why = self.kernel_of(rows, index)
            if why:
                reasons[index] = why
                continue
            preset, op, ranks, tokens, sms = self.case_of(rows, index)
            nodes = _nodes(ranks)
            model, name, inputs = _asked(kernel, op, preset, ranks, nodes, tokens, sms, limited=self.limited)
            section, carried = whose_section(profiles, preset, name)
            if section is None:
                reasons[index] = f"no profile has the section {name!r}"
                continue
            values[index] = model.of_section(section).predict(inputs)[0]
            if kernel == "nccl" and nodes > 1:
                values[index] = across_nodes(values[index], inputs, nodes, float(peaks(np.asarray([preset]), "nic")[0]))
            outside[index] = bool(section.outside(inputs)[0])
            wide = spread(section, partial(model.seconds_of, rows=inputs), outside=outside[index : index + 1], carried=True)
            low[index], high[index] = (float(bound[0]) for bound in interval(values[index : index + 1], wide))
            basis[index] = "assumed" if nodes > 2 or not carried else "datasheet"
        return prediction(values, low, high, outside=outside, reasons=reasons, basis=basis)


def across_nodes(inside: float, inputs: Mapping[str, NDArray[Any]], nodes: int, nic: float) -> float:
    """Return the seconds of NCCL's all-to-all between nodes: the card's bytes, and one peer on another node after the other.

    Parameters
    ----------
    inside : float
        Seconds if all ranks were behind one switch.
    inputs : mapping
        Of the model of one node.
    nodes : int
    nic : float
        Peak of a card, B/s one way.
    """
    ranks, size = float(inputs["num_gpus"][0]), float(inputs["bytes_per_rank"][0])
    peers = ranks - ranks / nodes
    return max(inside, size * (nodes - 1) / nodes / (NIC_SHARE * nic)) + FIRST + PEER * (peers - 1)


def _asked(
    kernel: str, op: str, preset: str, ranks: int, nodes: int, tokens: float, sms: int, *, limited: bool
) -> tuple[type[DeepEpLowLatency | DeepEpNormal | NcclAllToAll], str, dict[str, NDArray[Any]]]:
    link, nic, memory = (float(peaks(np.asarray([preset]), name)[0]) for name in ("nvlink", "nic", "memory_bandwidth"))
    if kernel == "nccl":  # a buffer with room for every token at every expert
        padded = EXPERTS * tokens * payload_bytes(HIDDEN, "fp8", 128)
        return NcclAllToAll, "nccl_all_to_all", _one(num_gpus=ranks, bytes_per_rank=padded, link_bandwidth=link, memory_bandwidth=memory)
    where = "_internode" if nodes > 1 else ""
    shape = _one(
        tokens_per_rank=tokens,
        num_topk=TOP_K,
        num_experts=EXPERTS,
        node_num=nodes,
        gpus_per_node=min(ranks, NODE),
        link_bandwidth=link,
        nic_bandwidth=nic,
    )
    hidden, top_k = np.asarray([float(HIDDEN)]), np.asarray([float(TOP_K)])
    if kernel == "low_latency":
        return DeepEpLowLatency, f"deepep_low_latency{where}.{op}", {**shape, "message_bytes": message_bytes(hidden, op)}
    gpu_copies, node_copies = copies(shape["node_num"], shape["gpus_per_node"], shape["num_experts"], top_k)
    if limited:
        gpu_copies, node_copies = (
            np.asarray([value]) for value in (group_limited(ranks)[0], group_limited(nodes)[0] * (nodes - 1) / nodes)
        )
    more = {"gpu_copies": gpu_copies, "node_copies": node_copies, "sms": np.asarray([float(sms)])}
    return DeepEpNormal, f"deepep_normal{where}.{op}", {**shape, **more, "message_bytes": row_bytes(hidden, top_k, op, shape["node_num"])}


@register_table
class ReadmeTables(PublishedTable):
    """Tables of READMEs; rows that give a bandwidth are turned into times by the bytes that the library counts."""

    name = "readme_tables_dispatch_combine"
    files = ("readme_tables_dispatch_combine*.csv",)
    columns = (
        "system",
        "library",
        "kernel",
        "ep",
        "op",
        "tokens_per_rank",
        "dtype",
        "latency_us",
        "bandwidth_GBps",
        "bandwidth_basis",
        "comm_sms",
    )
    limited = True

    def kernel_of(self, rows: Rows, index: int) -> tuple[str, str]:
        """Return DeepEP's kernels; other libraries have none."""
        library, kernel = (str(words(rows, name)[index]) for name in ("library", "kernel"))
        if not library.startswith("deepep"):
            return "", OTHER.format(name=library)
        system = str(words(rows, "system")[index])
        if not preset_of(system):
            return "", unknown_system(system)
        if "efa" in system.lower():
            return "", EFA
        if in_rack(np.asarray([system]))[0]:
            return (
                "",
                f"DeepEP inside the NVLink rack of {system!r}: these kernels were fitted in nodes of {NODE} GPUs, with cards between them",
            )
        return (kernel, "") if kernel in {"low_latency", "normal"} else ("", f"DeepEP's kernel {kernel!r} was never fitted")

    def case_of(self, rows: Rows, index: int) -> tuple[str, str, int, float, int]:
        """Return what the row says."""
        sms = float(numbers(rows, "comm_sms")[index])
        preset = preset_of(str(words(rows, "system")[index]))
        op, ranks = str(words(rows, "op")[index]), int(numbers(rows, "ep")[index])
        return preset, op, ranks, float(numbers(rows, "tokens_per_rank")[index]), SMS if np.isnan(sms) else int(sms)

    def seconds(self, rows: Rows) -> Floats:
        """Return the latency, or what follows from the bandwidth: rows of payload by nodes or by GPUs, own ones included.

        DeepEP's normal rows use group-limited routing: four of eight groups of experts, a group on each GPU of one node and a group for
        each node or half
        a node of several, so that a token goes to at most 4 of them.
        """
        latency, rate = numbers(rows, "latency_us") / 1e6, numbers(rows, "bandwidth_GBps") * 1e9
        tokens, ranks = numbers(rows, "tokens_per_rank"), numbers(rows, "ep")
        basis, dtypes = words(rows, "bandwidth_basis"), words(rows, "dtype")
        size = np.asarray([payload_bytes(HIDDEN, "fp8" if str(dtype) == "fp8" else "bf16", 128) for dtype in dtypes])
        nodes, gpus = (np.asarray([group_limited(parts)[0] for parts in column]) for column in (_nodes(ranks), ranks))
        counted = np.select([basis == "rdma", basis == "nvlink"], [nodes, gpus], default=np.asarray(TOP_K))
        return np.where(np.isfinite(latency), latency, tokens * counted * size / rate)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, library, kernel and EP."""
        return labels(rows, ("system", "library", "kernel", "ep"))


def group_limited(parts: float, *, groups: int = 8, chosen: int = 4, choices: int = TOP_K) -> tuple[float, float]:
    """Return the parts (nodes or GPUs) that a token goes to if its experts come from few groups, and its chance of each.

    A part holds ``groups / parts`` whole groups, or a group is spread over ``parts / groups`` parts. The experts of a token are taken as
    spread over the chosen
    groups at random.

    Examples
    --------
    >>> round(group_limited(8)[0], 2), round(group_limited(2)[0], 2)
    (3.6, 1.98)
    """
    from math import comb

    if parts <= groups:
        held = round(groups / parts)
        expected = 0.0
        for of_them in range(1, min(held, chosen) + 1):
            odds = comb(held, of_them) * comb(groups - held, chosen - of_them) / comb(groups, chosen)
            expected += odds * (1.0 - (1.0 - of_them / chosen) ** choices)
        return float(parts * expected), float(expected)
    split = parts / groups
    each = (chosen / groups) * (1.0 - (1.0 - 1.0 / (chosen * split)) ** choices)
    return float(parts * each), float(each)


@register_table
class EfaAndConnectX(PublishedTable):
    """DeepEP and pplx-garden over ConnectX-7 and AWS EFA."""

    name = "moe_alltoall_efa_cx7"
    files = ("moe_alltoall_efa_cx7*.csv",)
    columns = ("phase", "tokens_per_rank", "op", "ep", "implementation", "median_us")

    def kernel_of(self, rows: Rows, index: int) -> tuple[str, str]:
        """Return low-latency kernels for decode and normal ones for prefill, of DeepEP over ConnectX."""
        name = str(words(rows, "implementation")[index])
        if not name.startswith("deepep"):
            return "", OTHER.format(name=name)
        if "efa" in name:
            return "", EFA
        return ("low_latency" if str(words(rows, "phase")[index]) == "decode" else "normal"), ""

    def case_of(self, rows: Rows, index: int) -> tuple[str, str, int, float, int]:
        """Return what the row says; the GPUs are H200 by the header."""
        op, ranks = str(words(rows, "op")[index]), int(numbers(rows, "ep")[index])
        return "h200-sxm", op, ranks, float(numbers(rows, "tokens_per_rank")[index]), SMS

    def seconds(self, rows: Rows) -> Floats:
        """Return the median."""
        return numbers(rows, "median_us") / 1e6

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return phase, implementation and EP."""
        return labels(rows, ("phase", "implementation", "ep"))


@register_table
class PplxKernels(PublishedTable):
    """Perplexity's first kernels beside NCCL through PyTorch and early DeepEP."""

    name = "pplx_kernels_alltoall"
    files = ("pplx_kernels_alltoall*.csv",)
    columns = ("tokens_per_gpu", "implementation", "ep", "mean_us")

    def kernel_of(self, rows: Rows, index: int) -> tuple[str, str]:
        """Return NCCL in one node, DeepEP's low-latency kernels, and nothing for the rest."""
        name = str(words(rows, "implementation")[index])
        if name == "Torch AtA":
            return "nccl", ""
        return ("low_latency", "") if name.startswith("DeepEP") else ("", OTHER.format(name=name))

    def case_of(self, rows: Rows, index: int) -> tuple[str, str, int, float, int]:
        """Return what the row says: NCCL on H100, DeepEP's rows on H800."""
        name = str(words(rows, "implementation")[index])
        preset, op = ("h800-sxm" if name.startswith("DeepEP") else "h100-sxm"), ("combine" if "Combine" in name else "dispatch")
        return preset, op, int(numbers(rows, "ep")[index]), float(numbers(rows, "tokens_per_gpu")[index]), SMS

    def seconds(self, rows: Rows) -> Floats:
        """Return the mean."""
        return numbers(rows, "mean_us") / 1e6

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return implementation and EP."""
        return labels(rows, ("implementation", "ep"))
