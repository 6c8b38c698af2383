"""Links of a given rate, by Linux's hierarchical token bucket (HTB): the lines that ``tc`` is given for one end of a link.

HTB is the shaper to use on a machine with few cores: it keeps a rate within some thousandths at a few per cent of a core, where a plain
token bucket cuts large packets into small ones first. Two ways of queueing:

- ``flow``: every pair of ranks has a class of its own that borrows from the link, so that pairs share it equally. That is max-min sharing.
- ``fifo``: one queue for all, as a simple switch has it.

With ``flow``, acknowledgements that carry no data go first. Behind data that waits the other way, they would hold up their own flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

QUEUES = ("flow", "fifo")

BURST = 16384
"""Bytes that a link lets through at once; HTB needs some per tick of the kernel's clock."""

LEAF_BURST = 3028
"""The same of one flow: two packets, so that a flow cannot take the link for itself."""

LIMIT = 8 << 20
"""Bytes that a queue holds: more than senders have under way, so that nothing is ever dropped."""

SEGMENT = 8192
"""Largest packet that the kernel hands to a link in one piece, in bytes: smaller ones mix flows more finely, and cost more."""

LINK_CLASS, ACKNOWLEDGEMENTS, OTHERS, FIRST_FLOW = "1:1", "1:2", "1:9", 16


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a link, where what leaves is shaped.

    Parameters
    ----------
    namespace, device : str
        Where it is.
    rate : float
        Bit/s.
    flows : tuple of (str, str)
        Addresses of source and destination of the pairs that may cross it.
    """

    namespace: str
    device: str
    rate: float
    flows: tuple[tuple[str, str], ...]


def lines(end: End, queue: str) -> list[str]:
    """Return what ``tc -batch`` is told to shape one end of a link."""
    link = f"rate {int(end.rate)}bit ceil {int(end.rate)}bit burst {BURST} cburst {BURST}"
    found = [
        f"qdisc add dev {end.device} root handle 1: htb default 9",
        f"class add dev {end.device} parent 1: classid {LINK_CLASS} htb {link}",
    ]
    if queue == "fifo":
        return [
            *found,
            f"class add dev {end.device} parent {LINK_CLASS} classid {OTHERS} htb {link}",
            f"qdisc add dev {end.device} parent {OTHERS} bfifo limit {LIMIT}",
        ]
    found += _classes("add", end)
    # TCP (protocol 6) of less than 64 bytes in all: headers and nothing else.
    small = "u32 match ip protocol 6 0xff match u16 0x0000 0xffc0 at 2"
    found.append(f"filter add dev {end.device} parent 1: protocol ip prio 1 {small} flowid {ACKNOWLEDGEMENTS}")
    for number, (source, destination) in enumerate(end.flows):
        flow = _flow(number)
        pair = f"u32 match ip src {source}/32 match ip dst {destination}/32"
        found += [
            f"qdisc add dev {end.device} parent {flow} bfifo limit {LIMIT}",
            f"filter add dev {end.device} parent 1: protocol ip prio 2 {pair} flowid {flow}",
        ]
    return found


def changed(end: End, queue: str, rate: float) -> list[str]:
    """Return what ``tc -batch`` is told to give one end of a link another rate, while it carries what it carries."""
    now = End(namespace=end.namespace, device=end.device, rate=rate, flows=end.flows)
    link = f"rate {int(rate)}bit ceil {int(rate)}bit burst {BURST} cburst {BURST}"
    whole = f"class change dev {end.device} parent 1: classid {LINK_CLASS} htb {link}"
    if queue == "fifo":
        return [whole, f"class change dev {end.device} parent {LINK_CLASS} classid {OTHERS} htb {link}"]
    # A class may always use the rate that it is promised, whatever its link may: so all of them change.
    return [whole, *_classes("change", now)]


def _flow(number: int) -> str:
    return f"1:{FIRST_FLOW + number:x}"


def _classes(verb: str, end: End) -> list[str]:
    share = int(end.rate) // (len(end.flows) + 1)
    common = f"rate {share}bit ceil {int(end.rate)}bit burst {LEAF_BURST} cburst {LEAF_BURST}"
    named: Sequence[tuple[str, str]] = [
        (ACKNOWLEDGEMENTS, "prio 0"),
        (OTHERS, f"prio 1 quantum {SEGMENT}"),
        *((_flow(number), f"prio 1 quantum {SEGMENT}") for number in range(len(end.flows))),
    ]
    return [f"class {verb} dev {end.device} parent {LINK_CLASS} classid {name} htb {common} {rest}" for name, rest in named]
