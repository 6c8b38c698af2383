"""Ranks in network namespaces of Linux, joined by virtual links of a given rate: made, and removed whatever happens.

In a star every rank is joined to one bridge. In two tiers each node has a bridge of its own, and one link to the core, which the ranks of
the node share. Each end of a link is a virtual Ethernet device whose outgoing packets are shaped (:mod:`moesim.lab.shaping`). Everything is
made inside namespaces: nothing of the machine's own network is touched, and removing the namespaces removes all of it.

The names of a testbed's namespaces begin with a token of its own. Its owner holds a lock on a file of that token. A lock ends with its
process, so a testbed whose lock nobody holds was left behind by one that was killed. Its janitor removes
it (:mod:`moesim.lab.janitor`), and if the janitor was killed as well, the next testbed does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from moesim.base.errors import MeasurementError, UsageError
from moesim.lab.janitor import Janitor
from moesim.lab.shaping import QUEUES, SEGMENT, End, changed, lines
from moesim.lab.signals import ignoring_interrupts

LOCKS = Path("/run/moesim-testbed")
MADE = Path("/run/netns")
NAME = re.compile(r"moesim([0-9a-f]{1,8})-(r\d+|n\d+|core)")
SHOWN = 60
"""Characters of a command that a message quotes."""
PACKET = 1500
SEND_BUFFER = 32768
"""Bytes that a connection may have under way. Little of it: a flow that is slowed further on must not fill its first link meanwhile."""
RECEIVE_BUFFER = 8 << 20
"""With acknowledgements first, a small one makes the kernel take data for old and drop it."""
SETTINGS = {
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_slow_start_after_idle": "0",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_early_retrans": "0",  # no probes for lost tails: a packet that is late waits in a queue
    "ipv4/tcp_wmem": f"4096 {SEND_BUFFER} {SEND_BUFFER}",
    "ipv4/tcp_rmem": f"4096 {RECEIVE_BUFFER} {RECEIVE_BUFFER}",
}
TIMEOUT = "2000ms"
"""Least time before TCP sends anything again: nothing is lost here, so what is late is still to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What a testbed shall be.

    Parameters
    ----------
    name : str
        For tables.
    ranks, per_node : int
        How many ranks; how many of them share a node (0: a star).
    fast_mbit, slow_mbit : float
        Mbit/s of a rank's link and of a node's uplink, each way.
    queue : str
        ``flow`` or ``fifo``.
    """

    name: str
    ranks: int
    per_node: int = 0
    fast_mbit: float = 100.0
    slow_mbit: float = 0.0
    queue: str = "flow"

    def __post_init__(self) -> None:
        if self.queue not in QUEUES:
            raise UsageError(f"fabric {self.name!r}: there is no queue {self.queue!r} (known: {', '.join(QUEUES)})")
        if not 2 <= self.ranks <= 64:
            raise UsageError(f"fabric {self.name!r}: {self.ranks} ranks; a testbed has 2 to 64")
        if self.per_node and (self.ranks % self.per_node or not self.slow_mbit > 0):
            raise UsageError(
                f"fabric {self.name!r}: {self.ranks} ranks in nodes of {self.per_node} with uplinks of {self.slow_mbit} Mbit/s"
            )
        if not self.fast_mbit > 0:
            raise UsageError(f"fabric {self.name!r}: links of {self.fast_mbit} Mbit/s carry nothing")

    @property
    def nodes(self) -> int:
        """Bridges below the core; 0 in a star."""
        return self.ranks // self.per_node if self.per_node else 0


def why_not_even_remove() -> str:
    """Return why this machine cannot so much as remove a testbed's namespaces; empty if nothing speaks against it."""
    if sys.platform != "linux":
        return "network namespaces are a part of Linux, and this is another system"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 cannot be found; install the package iproute2"
    if os.geteuid() != 0:
        return "making network namespaces takes root; run this command as root, or under 'sudo'"
    return ""


def why_not() -> str:
    """Return why this machine cannot hold a testbed; empty if nothing speaks against it.

    It tries one, which first removes what killed runs left behind.
    """
    reason = why_not_even_remove()
    if reason:
        return reason
    probe = Testbed(Fabric(name="probe", ranks=2))
    try:
        with probe:
            return ""
    except MeasurementError as error:
        return f"the kernel refuses namespaces or shaped links: {error}"


def run(command: Sequence[str], text: str = "") -> str:
    """Run a tool of iproute2.

    Raises
    ------
    MeasurementError
        With what it says, if it fails.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        asked = " ".join(command)
        asked = asked if len(asked) <= SHOWN else f"{asked[:SHOWN]} ..."
        raise MeasurementError(f"{asked}: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout


def remove_left_behind() -> list[str]:
    """Remove the namespaces of testbeds whose owners are gone; return their tokens."""
    gone = []
    for token in sorted({found.group(1) for found in map(NAME.fullmatch, _namespaces()) if found}):
        with contextlib.suppress(MeasurementError):
            lock = _lock(token)
            try:
                _remove(token)
                gone.append(token)
            finally:
                _unlock(token, lock)
    return gone


def in_use() -> list[str]:
    """Return the tokens of testbeds that somebody holds just now."""
    remove_left_behind()
    return sorted({found.group(1) for found in map(NAME.fullmatch, _namespaces()) if found})


def _namespaces() -> list[str]:
    return sorted(path.name for path in MADE.iterdir()) if MADE.is_dir() else []


def _lock(token: str) -> IO[str]:
    """Take the lock of a token, or raise MeasurementError if somebody holds it."""
    import fcntl

    try:
        LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (LOCKS / token).open("a", encoding="ascii")
    except OSError as error:
        raise MeasurementError(f"{LOCKS}: {(error.strerror or str(error)).lower()}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise MeasurementError(f"testbed {token} is in use") from None
    return file


def _unlock(token: str, file: IO[str]) -> None:
    with contextlib.suppress(OSError):
        (LOCKS / token).unlink(missing_ok=True)
    file.close()


def _remove(token: str) -> None:
    for name in _namespaces():
        found = NAME.fullmatch(name)
        if found and found.group(1) == token:
            with contextlib.suppress(MeasurementError):  # somebody else may have removed it meanwhile
                run(["ip", "netns", "delete", name])


class Testbed:
    """Namespaces and links of a fabric: made on entering, removed on leaving.

    Parameters
    ----------
    fabric : Fabric
        What to make.
    """

    __test__ = False

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.token = f"{os.getpid():x}"
        self._file: IO[str] | None = None
        self._janitor: Janitor | None = None

    def namespace(self, what: str) -> str:
        """Return the name of the namespace of ``r0`` (a rank), ``n0`` (a node) or ``core``."""
        return f"moesim{self.token}-{what}"

    def address(self, rank: int) -> str:
        """Return the address of a rank."""
        return f"10.77.0.{rank + 1}"

    def __enter__(self) -> Self:
        remove_left_behind()
        self._file = _lock(self.token)
        try:
            self._janitor = Janitor(self._all(), LOCKS / self.token)
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ignoring_interrupts():
            _remove(self.token)
            if self._file is not None:
                _unlock(self.token, self._file)
                self._file = None
            if self._janitor is not None:
                self._janitor.dismiss()
                self._janitor = None

    def ends(self) -> list[End]:
        """Return every end of every link."""
        fabric, fast, slow = self.fabric, self.fabric.fast_mbit * 1e6, self.fabric.slow_mbit * 1e6
        ranks = range(fabric.ranks)
        found = []
        for rank in ranks:
            others = [peer for peer in ranks if peer != rank]
            out = tuple((self.address(rank), self.address(peer)) for peer in others)
            into = tuple((self.address(peer), self.address(rank)) for peer in others)
            found.append(End(namespace=self.namespace(f"r{rank}"), device="eth0", rate=fast, flows=out))
            found.append(End(namespace=self.namespace(self._switch(rank)), device=f"rank{rank}", rate=fast, flows=into))
        for node in range(fabric.nodes):
            inside = [rank for rank in ranks if rank // fabric.per_node == node]
            far = [rank for rank in ranks if rank // fabric.per_node != node]
            out = tuple((self.address(one), self.address(other)) for one in inside for other in far)
            into = tuple((other, one) for one, other in out)
            found.append(End(namespace=self.namespace(f"n{node}"), device="uplink", rate=slow, flows=out))
            found.append(End(namespace=self.namespace("core"), device=f"node{node}", rate=slow, flows=into))
        return found

    def change(self, rank: int, mbit: float) -> list[tuple[str, list[str]]]:
        """Return (namespace, lines for tc) that give both ends of a rank's link another rate."""
        mine = {(self.namespace(f"r{rank}"), "eth0"), (self.namespace(self._switch(rank)), f"rank{rank}")}
        return [(end.namespace, changed(end, self.fabric.queue, mbit * 1e6)) for end in self.ends() if (end.namespace, end.device) in mine]

    def counters(self) -> dict[str, int]:
        """Return packets that queues have dropped, and segments that TCP has sent again: both should be next to none."""
        drops = sum(
            int(queue.get("drops", 0))
            for name in self._all()
            for queue in json.loads(run(["tc", "-n", name, "-s", "-j", "qdisc", "show"]) or "[]")
        )
        again = 0
        for rank in range(self.fabric.ranks):
            text = run(["ip", "netns", "exec", self.namespace(f"r{rank}"), "cat", "/proc/net/snmp"])
            names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
            again += int(dict(zip(names, values, strict=True))["RetransSegs"])
        return {"dropped_packets": drops, "retransmitted_segments": again}

    def _switch(self, rank: int) -> str:
        return f"n{rank // self.fabric.per_node}" if self.fabric.nodes else "core"

    def _all(self) -> list[str]:
        fabric = self.fabric
        parts = [*(f"r{rank}" for rank in range(fabric.ranks)), *(f"n{node}" for node in range(fabric.nodes)), "core"]
        return [self.namespace(part) for part in parts]

    def _make(self) -> None:
        run(["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in self._all()))
        for name in [self.namespace(f"n{node}") for node in range(self.fabric.nodes)] + [self.namespace("core")]:
            run(
                ["ip", "-n", name, "-batch", "-"],
                "link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\nlink set lo up\n",
            )
        for rank in range(self.fabric.ranks):
            self._link(f"r{rank}", "eth0", self._switch(rank), f"rank{rank}")
            own = f"{self.address(rank)}"
            route = f"route change 10.77.0.0/24 dev eth0 src {own} rto_min {TIMEOUT}"
            run(["ip", "-n", self.namespace(f"r{rank}"), "-batch", "-"], f"addr add {own}/24 dev eth0\n{route}\n")
        for node in range(self.fabric.nodes):
            self._link(f"n{node}", "uplink", "core", f"node{node}")
        ends = self.ends()
        for end in ends:
            run(["tc", "-n", end.namespace, "-batch", "-"], "\n".join(lines(end, self.fabric.queue)) + "\n")
        for name in self._all():
            self._settle(name, [end.device for end in ends if end.namespace == name])

    def _link(self, one: str, device: str, other: str, peer: str) -> None:
        """Join two namespaces; a device in a namespace with a bridge becomes a port of it."""
        first, second = self.namespace(one), self.namespace(other)
        run(["ip", "link", "add", device, "netns", first, "type", "veth", "peer", "name", peer, "netns", second])
        for name, what, part in ((first, device, one), (second, peer, other)):
            port = "" if part.startswith("r") else f"link set {what} master br0\n"
            text = f"link set {what} mtu {PACKET} txqueuelen 10000 gso_max_size {SEGMENT}\n{port}link set {what} up\nlink set lo up\n"
            run(["ip", "-n", name, "-batch", "-"], text)

    def _settle(self, name: str, devices: Sequence[str]) -> None:
        """Set TCP as it is needed here, and have each flow handled by one core, or packets overtake each other."""
        mask = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
        steps = [f"echo {mask} > /sys/class/net/{device}/queues/rx-0/rps_cpus" for device in devices]
        steps += [f"echo '{value}' > /proc/sys/net/{key}" for key, value in SETTINGS.items()]
        run(["ip", "netns", "exec", name, "sh", "-e", "-c", "; ".join(steps)])
