"""What a row weighs on the wire, and by what libraries reckon their bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.facts.model import DTYPE_BYTES

SCALED = ("fp8", "int8", "fp4")
"""Dtypes that carry a scale per block beside them; ``mxfp4`` has its scales in its bytes per element."""

SCALE_BYTES = 4
INDEX_BYTES = 4
WEIGHT_BYTES = 4
GRADIENT_DTYPE = "bf16"


def payload_bytes(width: int, dtype: str, scale_block: int) -> float:
    """Return the bytes of ``width`` elements, with a 4-byte scale per block of ``scale_block`` in ``SCALED`` dtypes (as DeepEP sends fp8).

    Examples
    --------
    >>> payload_bytes(7168, "bf16", 128), payload_bytes(7168, "fp8", 128)
    (14336.0, 7392.0)
    """
    scales = -(-width // scale_block) * SCALE_BYTES if dtype in SCALED else 0
    return width * DTYPE_BYTES[dtype] + scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Bytes of one row on each way.

    Parameters
    ----------
    dispatch, combine : float
        Forward, to the experts and back.
    gradient_out, gradient_home : float
        Backward, the gradient of combine to the experts, and that of dispatch back to the tokens.
    counted_dispatch, counted_combine, counted_gradient : float
        What a row counts for in the bandwidth that the library reports, forward and backward.
    """

    dispatch: float
    combine: float
    gradient_out: float
    gradient_home: float
    counted_dispatch: float
    counted_combine: float
    counted_gradient: float
