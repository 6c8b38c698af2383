"""The update of the weights: what it reads and writes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.model import DTYPE_BYTES
from moesim.facts.scenario import Setting
from moesim.models.collective.gradients import tensor_layer_parameters
from moesim.models.work import Work

STATE_TRAFFIC = 28.0
"""Bytes per parameter that Adam reads and writes beside the weight itself: the gradient (4) and three fp32 states in and out (24)."""

ADAM_FLOPS = 12.0
"""Operations per parameter: two moving averages (3 and 4), bias correction, root, quotient, decay and step."""


def shards(setting: Setting) -> tuple[int, int]:
    """Return among how many GPUs the update of one parameter is divided: of what all GPUs of a stage hold, and of experts."""
    if setting.training is None or setting.training.sharding == "none":
        return 1, 1
    stage = setting.gpus // setting.parallel.pp
    return stage // setting.parallel.tp, stage // setting.parallel.block


def update_work(setting: Setting, layer: int, slots: ArrayLike) -> Work:
    """Return what the update of one layer's weights asks of each GPU.

    Adam in mixed precision is a stream: it reads the gradient, the fp32 copy of the weight and two moments, and writes those three and the
    weight (Kingma and Ba, arXiv:1412.6980, algorithm 1; states as in Micikevicius et al., arXiv:1710.03740). Clipping by the global
    norm, which reads all gradients once more, and clearing them are not counted.

    Parameters
    ----------
    setting : Setting
        Its ``training`` says whether states are sharded; all GPUs.
    layer : int
        The embedding counts to layer 0, the head to the last.
    slots : int[G]
        Physical experts of a layer on each GPU.

    Returns
    -------
    Work
        Of each GPU.
    """
    model = setting.model
    dense, experts = shards(setting)
    weights, kept = tensor_layer_parameters(model, layer, setting.parallel.tp)
    held = np.asarray(slots, dtype=np.float64) * model.expert_parameters * (layer in model.moe_layers)
    parameters = (weights + kept) / dense + held / experts
    written = (weights * DTYPE_BYTES[model.weight_dtype] + kept * DTYPE_BYTES[model.activation_dtype]) / dense
    moved = parameters * STATE_TRAFFIC + written + held / experts * DTYPE_BYTES[model.expert_dtype]
    return Work(flops=parameters * ADAM_FLOPS, moved=moved, dtype=model.activation_dtype)
