"""What the lab needs: PyTorch, which is an extra."""

from __future__ import annotations

import importlib.util

from moesim.base.errors import UsageError


def need_torch() -> None:
    """Refuse to measure without PyTorch, without importing it.

    Raises
    ------
    UsageError
        Naming the extra that brings it.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError("measuring needs PyTorch, which is not installed; pip install 'moesim[measure]' brings it")
