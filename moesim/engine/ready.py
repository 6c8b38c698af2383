"""Get ready to simulate before it is known what: load the plug-ins and the compiled core while another process reads the scenario."""

from __future__ import annotations

import numpy as np

from moesim.base.registry import SLOTS, kinds, plugin
from moesim.models.lean_numba import load_numba


def get_ready() -> None:
    """Load every slot, the engine and the compiled code; the latter by sending one byte from a GPU to another.

    What has to be compiled first is left alone: a scenario that does not load must not wait for it.
    """
    load_numba()
    import simpy

    from moesim.engine.fabric import Fabric
    from moesim.engine.simulate import simulate  # noqa: F401
    from moesim.models.sharing.core import needs_compiling

    for slot in SLOTS:
        kinds(slot)
    if needs_compiling():
        return
    env = simpy.Environment()
    fabric = Fabric(env, plugin("topology", "one_switch")(gpus=2).build())
    counter = fabric.watch(lambda: None)
    fabric.transfer(np.array([0]), np.array([1]), np.ones(1), np.full((1, 2), counter, dtype=np.int32))
    env.run()
