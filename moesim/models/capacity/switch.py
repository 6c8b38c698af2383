"""The capacity of the Switch Transformer paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import CountOrZero, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_position
from moesim.models.capacity.survivors import keep_first, what_is_left


@register("capacity", "switch")
@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Cap the tokens from each source GPU to each expert at T factor / E; earlier tokens first; send buffers filled to the cap.

    T are the tokens of that GPU and E the experts; for routers that choose one expert per token. A dropped token goes on through the
    residual connection. Gate weights are the router's probabilities and stay as they are.

    Parameters
    ----------
    factor : float
        The capacity factor: 1.0, 1.25 and 2.0 in the paper's Table 1.
    min_capacity : int
        C is never below it; 4 in Mesh TensorFlow.

    Notes
    -----
    Source: Fedus et al., arXiv:2101.03961, section 2.2, equation 3, per core. The paper gives no rounding; here it is that of Mesh
    TensorFlow, ``mesh_tensorflow/transformer/moe.py``: C = max(min(T, int(T factor / E)), 4). There a GPU's tokens may also be cut into
    smaller groups with a capacity each; here they are one group. Dropped before the dispatch; shapes are static, so buffers travel and
    are computed whole.
    """

    factor: Positive = 1.25
    min_capacity: CountOrZero = 4

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run.

        Raises
        ------
        PluginError
            If the model's tokens make more than one choice.
        """
        if setting.model.top_k != 1:
            raise PluginError(
                f"capacity rule 'switch' is for one choice per token, but the model has top_k {setting.model.top_k}; "
                "use gshard (2 choices), deepspeed or megatron"
            )

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            capacity = mesh_capacity(np.diff(routing.token_start), routing.experts, self.factor, self.min_capacity)
            keep = None if routing.ids is None else keep_first(routing, capacity, by_position(routing))
            return what_is_left(routing, capacity=capacity, limit=capacity, rows=capacity, keep=keep, weights=routing.weights)

        return limit


def mesh_capacity(tokens: Ints, experts: int, factor: float, min_capacity: int) -> Ints:
    """Return int[G], rows of each source's buffer for each expert: max(min(T, int((T factor) / E)), min_capacity).

    Source: tensorflow/mesh, ``mesh_tensorflow/transformer/moe.py``, ``transformer_moe_layer_v1``.

    Examples
    --------
    >>> mesh_capacity(np.array([100, 1000, 8]), 8, 1.25, 4).tolist()
    [15, 156, 4]
    """
    share = np.floor(tokens * factor / experts).astype(np.int64)
    return np.maximum(np.minimum(tokens, share), min_capacity)
