"""How uneven a load is: every measure of imbalance that the field uses, as pure functions of arrays.

A load is an array ``[..., n]`` of numbers that are at least 0 (tokens of n experts, rows of n GPUs); each function reduces the last
axis. The two aggregations over layers reduce the last two axes, ``[..., layers, n]``. A load that is zero everywhere counts as
balanced, except where the source of a formula says otherwise; each function tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SGLANG_EPSILON = 1e-5


def _loads(load: ArrayLike) -> Floats:
    return np.asarray(load, dtype=np.float64)


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), otherwise), where=below > 0))


def max_over_mean(load: ArrayLike) -> Floats:
    """Return max / mean: 1 is balanced, n is everything in one place.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]
        1 for a load of zeros.

    Notes
    -----
    LeastLoadedEP, ``compute_gpu_imbalance_ratio``; also called peak-to-average ratio.

    Examples
    --------
    >>> float(max_over_mean([3, 1, 1, 3]))
    1.5
    """
    values = _loads(load)
    # The mean of equal floats may round to more than each of them.
    return np.asarray(np.maximum(_ratio(values.max(axis=-1), values.mean(axis=-1), 1.0), 1.0))


def maxvio(load: ArrayLike) -> Floats:
    """Return max / mean - 1, the maximal violation of balance; 0 for a load of zeros.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]

    Notes
    -----
    MaxVio of arXiv 2408.15664; TensorRT-LLM reports the same number as its imbalance ratio, (max - mean) / mean.

    Examples
    --------
    >>> float(maxvio([3, 1, 1, 3]))
    0.5
    """
    return np.asarray(max_over_mean(load) - 1.0)


def balancedness(load: ArrayLike) -> Floats:
    """Return mean / max of each load: 1 is balanced, 1 / n is everything in one place; 1 for a load of zeros.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]

    Notes
    -----
    The average-to-peak ratio. :func:`balancedness_sglang` and :func:`balancedness_vllm` say how two engines sum it up over layers.

    Examples
    --------
    >>> float(balancedness([4, 2, 2, 0]))
    0.5
    """
    return np.asarray(1.0 / max_over_mean(load))


def balancedness_sglang(load: ArrayLike) -> Floats:
    """Return the mean over layers of (mean + 1e-5) / (max + 1e-5).

    Parameters
    ----------
    load : array_like, float[..., layers, n]
        Tokens of each GPU in each layer.

    Returns
    -------
    float[...]
        1 for a load of zeros.

    Notes
    -----
    SGLang 0.5, ``compute_utilization_rate`` and the mean that its expert distribution recorder logs. Every layer weighs the same.

    Examples
    --------
    >>> round(float(balancedness_sglang([[2, 0], [20, 20]])), 4)
    0.75
    """
    values = _loads(load)
    layers = (values.mean(axis=-1) + SGLANG_EPSILON) / (values.max(axis=-1) + SGLANG_EPSILON)
    return np.asarray(layers.mean(axis=-1))


def balancedness_vllm(load: ArrayLike) -> Floats:
    """Return the sum over layers of the mean, divided by the sum over layers of the maximum.

    Parameters
    ----------
    load : array_like, float[..., layers, n]
        Tokens of each GPU in each layer.

    Returns
    -------
    float[...]
        0 for a load of zeros, as vLLM reports it.

    Notes
    -----
    vLLM 0.33, ``_compute_eplb_load_stats``. A layer weighs as much as it has tokens.

    Examples
    --------
    >>> round(float(balancedness_vllm([[2, 0], [20, 20]])), 4)
    0.9545
    """
    values = _loads(load)
    return _ratio(values.mean(axis=-1).sum(axis=-1), values.max(axis=-1).sum(axis=-1), 0.0)


def coefficient_of_variation(load: ArrayLike, *, sample: bool = False) -> Floats:
    """Return standard deviation / mean.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.
    sample : bool
        Divide by n - 1 (the sample's deviation, as FastMoE's ``fmoe/balance.py`` does through ``torch.std``) instead of n.

    Returns
    -------
    float[...]
        For a load of zeros: 0, or NaN with ``sample``, as FastMoE has it. NaN with ``sample`` where n is 1.

    Examples
    --------
    >>> float(coefficient_of_variation([1, 3]))
    0.5
    """
    values = _loads(load)
    n = values.shape[-1]
    mean = values.mean(axis=-1)
    squares = ((values - mean[..., None]) ** 2).sum(axis=-1)
    if not sample:
        return _ratio(np.sqrt(squares / n), mean, 0.0)
    deviation = np.sqrt(squares / (n - 1)) if n > 1 else np.full(mean.shape, np.nan)
    return _ratio(deviation, mean, np.nan)


def lmax_over_lmin(load: ArrayLike) -> Floats:
    """Return (max + 1) / (min + 1), which stays finite when an expert is dead.

    Parameters
    ----------
    load : array_like, float[..., n]
        Counts, at least 0. The 1 makes this depend on the scale of the load.

    Returns
    -------
    float[...]
        1 for a load of zeros.

    Notes
    -----
    FastMoE, ``fmoe/balance.py``.

    Examples
    --------
    >>> float(lmax_over_lmin([5, 1]))
    3.0
    """
    values = _loads(load)
    return np.asarray((values.max(axis=-1) + 1.0) / (values.min(axis=-1) + 1.0))


def gini(load: ArrayLike) -> Floats:
    """Return the Gini coefficient: 0 is balanced, 1 - 1/n is everything in one place; 0 for a load of zeros.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]
        Half the mean absolute difference of two places, divided by the mean.

    Notes
    -----
    With x sorted upwards and i from 1: sum((2 i - n - 1) x_i) / (n sum(x)), the usual closed form of the definition.

    Examples
    --------
    >>> float(gini([0, 0, 0, 8]))
    0.75
    """
    values = np.sort(_loads(load), axis=-1)
    n = values.shape[-1]
    rank = 2.0 * np.arange(1, n + 1) - n - 1
    # Rounding may leave a tiny negative number where all places are equal.
    return np.asarray(np.maximum(_ratio((values * rank).sum(axis=-1), n * values.sum(axis=-1), 0.0), 0.0))


def entropy(load: ArrayLike) -> Floats:
    """Return the Shannon entropy of the shares in nats: ln n is balanced, 0 is everything in one place.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]
        0 for a load of zeros.

    Examples
    --------
    >>> round(float(entropy([1, 1])), 4)
    0.6931
    """
    values = _loads(load)
    total = values.sum(axis=-1, keepdims=True)
    share = _ratio(values, np.broadcast_to(total, values.shape), 0.0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.maximum(-(share * logs).sum(axis=-1), 0.0))


def normalised_entropy(load: ArrayLike) -> Floats:
    """Return the entropy divided by ln n: 1 is balanced, 0 is everything in one place.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.

    Returns
    -------
    float[...]
        0 for a load of zeros; 1 where n is 1 and there is load, since one place cannot be unbalanced.

    Examples
    --------
    >>> float(normalised_entropy([1, 1, 0, 0]))
    0.5
    """
    values = _loads(load)
    n = values.shape[-1]
    if n == 1:
        return np.asarray((values[..., 0] > 0).astype(np.float64))
    return np.asarray(np.minimum(entropy(values) / np.log(n), 1.0))


def dead(load: ArrayLike, threshold: float = 0.0) -> NDArray[Any]:
    """Return how many places have at most ``threshold`` of the load.

    Parameters
    ----------
    load : array_like, float[..., n]
        At least 0.
    threshold : float
        Share of the total load, from 0 (nothing at all) to 1; 0.01 counts places with at most 1 %.

    Returns
    -------
    int[...]
        n for a load of zeros.

    Examples
    --------
    >>> int(dead([0, 5, 95])), int(dead([0, 5, 95], threshold=0.05))
    (1, 2)
    """
    values = _loads(load)
    return np.asarray((values <= threshold * values.sum(axis=-1, keepdims=True)).sum(axis=-1))
