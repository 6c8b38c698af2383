"""Get ready to simulate before it is known what: load the plug-ins and the compiled core while another process reads the scenario."""

from __future__ import annotations

from moesim.base.registry import SLOTS, kinds, plugin
from moesim.models.lean_numba import load_numba


def get_ready() -> None:
    """Load every slot, the engine and the compiled code that most steps use; the latter by sending one byte from a GPU to another.

    What has to be compiled first is left alone: a scenario that does not load must not wait for it.
    """
    load_numba()
    import simpy

    from moesim.engine.chain import rehearse
    from moesim.engine.fabric import Fabric
    from moesim.engine.simulate import simulate  # noqa: F401
    from moesim.models.sharing.core import needs_compiling

    for slot in SLOTS:
        kinds(slot)
    if needs_compiling():
        return
    rehearse(Fabric(simpy.Environment(), plugin("topology", "one_switch")(gpus=2).build()))
