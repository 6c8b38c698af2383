"""Bandwidths as the libraries report them, in B/s: each counts other bytes, so one library's figure is not another's.

The exchanges say in their descriptions which of these they are; ``dispatch_bandwidth`` and ``combine_bandwidth`` apply it to a run. These
functions apply it to a table that somebody published.
"""

from __future__ import annotations

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.model import DTYPE_BYTES
from moesim.models.exchange.low_latency import HEADER_BYTES
from moesim.models.exchange.payload import payload_bytes

TIMES_OVER = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}
"""How often each of n ranks must send (n - 1) / n of the buffer, by collective."""


def nccl_bandwidths(collective: str, size: float, ranks: int, seconds: float) -> tuple[float, float]:
    """Return the algorithm and the bus bandwidth of nccl-tests.

    Parameters
    ----------
    collective : str
        A key of ``TIMES_OVER``.
    size : float
        Bytes, as nccl-tests count them: the whole buffer of a rank. For ``all_to_all`` it is what a rank sends, its own share included; for
        ``all_gather`` what a rank has afterwards; for ``reduce_scatter`` what it has before.
    ranks : int
    seconds : float

    Returns
    -------
    tuple of float
        In B/s.

    Raises
    ------
    UsageError
        If the collective is unknown.

    Notes
    -----
    Source: NVIDIA/nccl-tests, ``doc/PERFORMANCE.md``.

    Examples
    --------
    >>> nccl_bandwidths("all_to_all", 8e9, 8, 0.1)
    (80000000000.0, 70000000000.0)
    """
    if collective not in TIMES_OVER:
        raise UsageError(f"nccl-tests have no bandwidth of {collective!r}{did_you_mean(collective, TIMES_OVER)}")
    algorithm = size / seconds
    return algorithm, algorithm * TIMES_OVER[collective] * (ranks - 1) / ranks


def deepep_bandwidth(rows: float, width: int, seconds: float, *, dtype: str = "bf16") -> float:
    """Return the bandwidth of DeepEP's normal kernels, in B/s: rows of payload with their scales, without routing, over time.

    Parameters
    ----------
    rows : float
        For the *RDMA* bandwidth: over the tokens of a rank, the nodes that each goes to, its own node included. For the *NVLink*
        bandwidth: the tokens that a rank receives, from itself included.
    width : int
        Elements of a token.
    seconds : float
    dtype : str
        Of the payload; fp8 has a 4-byte scale per 128 elements.

    Notes
    -----
    Source: deepseek-ai/DeepEP, ``tests/test_internode.py`` (``rdma_send_bytes``, ``nvl_recv_bytes``) and ``tests/test_intranode.py``.
    Combine divides as many rows of bf16 by its own time. Since local nodes count, the RDMA figure can exceed what a network card carries.

    Examples
    --------
    >>> deepep_bandwidth(4096 * 4, 7168, 0.001, dtype="fp8") / 1e9  # 4096 tokens to 4 nodes each
    121.110528
    """
    return rows * payload_bytes(width, dtype, 128) / seconds


def low_latency_bandwidth(choices: float, width: int, seconds: float, *, dtype: str = "fp8", header: bool = True) -> float:
    """Return the bandwidth of DeepEP's low-latency kernels, in B/s: all choices of a rank's tokens times the bytes of a message, over time.

    Parameters
    ----------
    choices : float
        Chosen experts of all tokens of a rank, those on the rank itself included.
    width : int
        Elements of a token.
    seconds : float
    dtype : str
        Of the payload.
    header : bool
        Dispatch counts 16 bytes before each message; combine does not.

    Notes
    -----
    Source: deepseek-ai/DeepEP, ``tests/test_low_latency.py`` (``num_fp8_bytes``, ``num_bf16_bytes``).

    Examples
    --------
    >>> round(low_latency_bandwidth(128 * 8, 7168, 77e-6) / 1e9)  # the documentation says 98 GB/s, of rounded microseconds
    99
    """
    return choices * (payload_bytes(width, dtype, 128) + header * HEADER_BYTES) / seconds


def pplx_bandwidth(tokens: float, top_k: int, width: int, seconds: float, *, dtype: str = "fp8") -> float:
    """Return the bandwidth of Perplexity's all-to-all, in B/s: the largest batch times its choices times payload and scales, over time.

    Parameters
    ----------
    tokens : float
        The most tokens that a rank may have, whether it has them or not.
    top_k : int
        Choices of a token.
    width : int
        Elements of a token.
    seconds : float
        The median.
    dtype : str
        Of the payload; fp8 has a 4-byte scale per 128 elements.

    Notes
    -----
    Source: perplexityai/pplx-garden, ``benchmarks/bench_all_to_all.py`` (``dispatch_bytes``, ``combine_bytes``). There the number and the
    dtype of scales are arguments of the benchmark; these are those of DeepSeek-V3.
    """
    return tokens * top_k * payload_bytes(width, dtype, 128) / seconds


def mori_bandwidth(received: float, width: int, seconds: float, *, dtype: str = "bf16") -> float:
    """Return the bandwidth of MORI, in B/s: tokens that a rank receives times their elements, without scales, over time.

    Parameters
    ----------
    received : float
        Tokens, one per token and rank, from itself included; combine counts the same ones.
    width : int
        Elements of a token.
    seconds : float
    dtype : str
        Of the payload.

    Notes
    -----
    Source: ROCm/mori, ``tests/python/ops/bench_dispatch_combine.py`` (``total_bytes``). Early versions print it in units of 2**30 B.
    """
    return received * width * DTYPE_BYTES[dtype] / seconds
