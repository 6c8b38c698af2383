"""The choices that the source brings."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting


@register("gate", "as_given")
@dataclass(frozen=True, slots=True, kw_only=True)
class AsGiven:
    """Take the source's choices as they are: recorded ones, or those of a synthetic router. Counts pass through."""

    def begin(self, setting: Setting) -> Choose:  # noqa: ARG002 - the contract of the slot
        """Return the gate for one run."""
        return unchanged


def unchanged(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
    """Return ``routing`` itself."""
    return routing
