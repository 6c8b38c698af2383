"""Checks that a plug-in keeps the contract of its slot: one function per slot, for the tests of whoever writes a plug-in.

::

    from moesim.testing import check_placement

    def test_my_placement_keeps_the_contract():
        check_placement(MyPlacement(window=4), steps=12)

Each takes an instance, tries it on small settings that it builds itself, and raises :class:`ContractBroken`, which names the law or rule
that is broken and the numbers that show it. A plug-in may refuse a setting with an error of :mod:`moesim.base.errors` (for example a
``FidelityError`` where a routing knows too little), but not all of them. Laws are numbered in ``docs/laws.md``.
"""

from moesim.base.errors import ContractBroken
from moesim.testing.measuring import check_metric, tiny_records
from moesim.testing.moving import check_exchange, check_topology
from moesim.testing.placing import check_dispatch, check_placement
from moesim.testing.routing import check_capacity, check_gate, check_source
from moesim.testing.timing import check_compute, check_schedule
from moesim.testing.world import tiny_cluster, tiny_model, tiny_routing, tiny_setting, tiny_settings

__all__ = [
    "ContractBroken",
    "check_capacity",
    "check_compute",
    "check_dispatch",
    "check_exchange",
    "check_gate",
    "check_metric",
    "check_placement",
    "check_schedule",
    "check_source",
    "check_topology",
    "tiny_cluster",
    "tiny_model",
    "tiny_records",
    "tiny_routing",
    "tiny_setting",
    "tiny_settings",
]
