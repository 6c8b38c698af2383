"""What a scenario says of a training step beyond its forward and backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, section

MODULES = ("attention_core", "experts", "shared", "dense", "moe")
"""What selective recomputation may compute again."""


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Which activations are computed again instead of kept, and how the weights are updated.

    Parameters
    ----------
    optimiser : str
        ``adam`` updates the weights at the end of the step, ``none`` leaves that out.
    sharding : str
        ``none``: every GPU updates all that it holds. ``data_parallel``: those that hold the same weights divide states and update among
        them (ZeRO stage 1; the distributed optimizer of Megatron-Core); the schedule must gather the weights afterwards.
    recompute : str
        ``none`` keeps all activations, ``selective`` computes some modules again before their backward pass, ``full`` whole layers,
        exchanges of tokens included, of which only the input is kept.
    recompute_modules : tuple of str
        Of ``selective``: ``attention_core`` (scores and values), ``experts`` (their products; rows that arrived are kept), ``shared``,
        ``dense``, or ``moe`` (gate, shared experts, dispatch, experts and combine).
    """

    optimiser: Annotated[str, Choice(("adam", "none"))] = "adam"
    sharding: Annotated[str, Choice(("none", "data_parallel"))] = "none"
    recompute: Annotated[str, Choice(("none", "selective", "full"))] = "none"
    recompute_modules: tuple[Annotated[str, Choice(MODULES)], ...] = ()

    def __post_init__(self) -> None:
        names = self.recompute_modules
        if self.recompute == "selective" and not names:
            raise FieldError("recompute_modules", f"selective recomputation needs modules: some of {', '.join(MODULES)}")
        if self.recompute != "selective" and names:
            raise FieldError(
                "recompute_modules", f"{', '.join(names)}: modules are chosen with recompute: selective, and recompute is {self.recompute}"
            )
        if len(set(names)) < len(names):
            raise FieldError("recompute_modules", f"{', '.join(names)}: name each module once")
        if "moe" in names and {"experts", "shared"} & set(names):
            raise FieldError("recompute_modules", f"{', '.join(names)}: moe has experts and shared in it already; leave them out")
        if self.sharding != "none" and self.optimiser == "none":
            raise FieldError("sharding", "there is no optimiser to shard: write optimiser: adam, or leave sharding out")
