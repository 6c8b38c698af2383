"""The shape of a Mixture-of-Experts model, as far as time and bytes depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Count, CountOrZero, Flag, Positive, Text, Whole, section

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "mxfp4": 0.53125}
"""Bytes per element; mxfp4 is 4 bits and one 8-bit scale per block of 32."""

Dtype = Annotated[str, Choice(tuple(DTYPE_BYTES))]

MOST_LAYERS = 10_000
MOST_EXPERTS = 2**16
"""Loads are kept for every expert of every layer."""


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention block: how many weights it multiplies by, and what it does per token of context.

    A token's scores and values over a context of c tokens cost ``4 * c * heads * score_width`` flops.

    Parameters
    ----------
    heads : int
        Query heads.
    score_width : float
        Mean of the width of a query-key head and of a value head.
    projection_parameters : int
        All weights of the block.
    cache_bytes_per_token : int
        Keys and values that a token leaves behind, in one layer.
    """

    heads: Count
    score_width: Positive
    projection_parameters: CountOrZero
    cache_bytes_per_token: CountOrZero


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class MoeModel:
    """A transformer with experts.

    Parameters
    ----------
    name : str
        Of the model.
    layers : int
        Transformer layers, dense and MoE; at most 10,000.
    moe_layers : tuple of int
        Which of them have experts, counted from 0.
    hidden : int
        Width of the residual stream.
    experts : int
        Routed experts of a layer; at most 2**16 = 65,536.
    top_k : int
        Routed experts that a token chooses.
    expert_width : int
        Inner width of one routed expert.
    shared_experts : int
        Experts that every token goes through, on its own GPU.
    shared_width : int
        Inner width of all shared experts of a layer together, 0 if none.
    dense_width : int
        Inner width of the feed-forward block of dense layers, 0 if there are none.
    groups : int
        Groups of experts in group-limited routing; 1 when there is none.
    top_groups : int
        Groups that a token may choose from.
    scoring : str
        What the router makes of its logits.
    normalise_top_k : bool
        Whether the gate weights of a token are divided by their sum.
    routed_scale : float
        What the gate weights are multiplied by.
    correction_bias : bool
        Whether the router adds a bias per expert to choose by.
    hash_layers : int
        Layers at the start that choose by a token's number instead of by scores.
    dispatch_width : int
        Elements a token brings to an expert: ``hidden``, or less for latent MoE.
    weight_dtype : str
        Of all weights but those of routed experts; a key of ``DTYPE_BYTES``.
    expert_dtype : str
        Of the weights of routed experts.
    activation_dtype : str
        Of what goes from layer to layer.
    vocabulary : int
        Rows of the embedding; for memory only.
    gated : bool
        Whether a feed-forward block has a gate beside up and down (three matrices), or not (two).
    tied_embeddings : bool
        Whether the output layer shares the weights of the embedding.
    notes : tuple of str
        What these facts leave out of the model they describe; shown with every result.
    attention : section
        The attention block.
    """

    name: Text
    layers: Annotated[int, Whole(1, MOST_LAYERS)]
    moe_layers: tuple[CountOrZero, ...]
    hidden: Count
    experts: Annotated[int, Whole(1, MOST_EXPERTS)]
    top_k: Count
    expert_width: Count
    shared_experts: CountOrZero = 0
    shared_width: CountOrZero = 0
    dense_width: CountOrZero = 0
    groups: Count = 1
    top_groups: Count = 1
    scoring: Annotated[str, Choice(("softmax", "sigmoid", "sqrtsoftplus"))] = "softmax"
    normalise_top_k: Flag = False
    routed_scale: Positive = 1.0
    correction_bias: Flag = False
    hash_layers: CountOrZero = 0
    dispatch_width: Count
    weight_dtype: Dtype = "bf16"
    expert_dtype: Dtype = "bf16"
    activation_dtype: Dtype = "bf16"
    vocabulary: CountOrZero = 0
    gated: Flag = True
    tied_embeddings: Flag = False
    notes: tuple[Text, ...] = ()
    attention: Attention

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise FieldError("top_k", f"top_k ({self.top_k}) is larger than experts ({self.experts})")
        if not self.moe_layers:
            raise FieldError("moe_layers", "no layer has experts: moesim needs at least one MoE layer")
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise FieldError("moe_layers", f"{list(self.moe_layers)} must be increasing, each layer once")
        if self.moe_layers[-1] >= self.layers:
            raise FieldError("moe_layers", f"layer {self.moe_layers[-1]} does not exist: the model has layers 0 to {self.layers - 1}")
        if self.experts % self.groups:
            raise FieldError("groups", f"{self.experts} experts do not divide into {self.groups} groups")
        if self.top_groups > self.groups:
            raise FieldError("top_groups", f"top_groups ({self.top_groups}) is larger than groups ({self.groups})")

    @property
    def matrices(self) -> int:
        """Matrices of a feed-forward block: gate, up and down, or only up and down."""
        return 3 if self.gated else 2

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert: gate (if there is one), up and down projections."""
        return self.matrices * self.dispatch_width * self.expert_width

    @property
    def expert_bytes(self) -> float:
        """Memory of one routed expert."""
        return self.expert_parameters * DTYPE_BYTES[self.expert_dtype]

    @property
    def routed_flops(self) -> int:
        """Flops of one token in one routed expert, forward."""
        return 2 * self.expert_parameters

    @property
    def total_parameters(self) -> int:
        """Weights of the whole model, embeddings included; norms, biases and multi-token-prediction layers are not counted.

        A layer is its attention block and either a dense feed-forward block or router, shared and routed experts. A dispatch
        width below ``hidden`` adds the two projections to and from it.
        """
        embeddings = (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        latent = 2 * self.hidden * self.dispatch_width if self.dispatch_width != self.hidden else 0
        shared = self.matrices * self.hidden * self.shared_width
        moe = self.hidden * self.experts + latent + shared + self.experts * self.expert_parameters
        dense = self.matrices * self.hidden * self.dense_width
        sparse_layers = len(self.moe_layers)
        layers = self.layers * self.attention.projection_parameters + sparse_layers * moe + (self.layers - sparse_layers) * dense
        return embeddings + layers

    @property
    def active_parameters(self) -> int:
        """Weights that one token meets: all but the experts it did not choose."""
        return self.total_parameters - len(self.moe_layers) * (self.experts - self.top_k) * self.expert_parameters
