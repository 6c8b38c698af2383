"""Network namespaces with shaped links: what tc is told, that they are made and removed, and who may not make them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.base.errors import MeasurementError, UsageError
from moesim.lab import namespaces
from moesim.lab.namespaces import NAME, SHOWN, Fabric, Testbed, in_use, remove_left_behind, why_not
from moesim.lab.shaping import End, changed, lines

REASON = why_not()
needs_namespaces = pytest.mark.skipif(bool(REASON), reason=REASON or "namespaces can be made here")
END = End(namespace="x", device="eth0", rate=100e6, flows=(("10.77.0.1", "10.77.0.2"), ("10.77.0.1", "10.77.0.3")))


def there(token):
    return [name for name in namespaces._namespaces() if (found := NAME.fullmatch(name)) and found.group(1) == token]


def test_a_queue_per_flow_has_a_class_for_each_pair_and_the_link_above_them():
    text = lines(END, "flow")
    assert text[1].endswith("classid 1:1 htb rate 100000000bit ceil 100000000bit burst 16384 cburst 16384")
    # Two flows and the rest share the link: a third is promised to each, and each may have all of it.
    leaves = [line for line in text if " parent 1:1 " in line]
    assert [line.split("classid ")[1].split()[0] for line in leaves] == ["1:2", "1:9", "1:10", "1:11"]
    assert all("rate 33333333bit ceil 100000000bit" in line for line in leaves)
    assert [line for line in text if "ip src" in line][1].endswith("u32 match ip src 10.77.0.1/32 match ip dst 10.77.0.3/32 flowid 1:11")
    assert sum("0xffc0 at 2 flowid 1:2" in line for line in text) == 1


def test_one_queue_has_no_classes_of_flows():
    text = lines(END, "fifo")
    assert len(text) == 4
    assert not any("filter" in line for line in text)


def test_another_rate_changes_the_link_and_every_promise():
    text = changed(END, "flow", 25e6)
    assert text[0].startswith("class change dev eth0 parent 1: classid 1:1 htb rate 25000000bit ceil 25000000bit")
    assert len(text) == 5
    assert all("rate 8333333bit ceil 25000000bit" in line for line in text[1:])
    assert len(changed(END, "fifo", 25e6)) == 2


def test_ends_of_a_two_tier_fabric():
    bed = Testbed(Fabric(name="t", ranks=4, per_node=2, fast_mbit=200.0, slow_mbit=100.0))
    ends = bed.ends()
    assert len(ends) == 2 * 4 + 2 * 2
    uplink = next(end for end in ends if end.device == "uplink")
    assert uplink.rate == 100e6
    assert uplink.flows == tuple((f"10.77.0.{i}", f"10.77.0.{j}") for i in (1, 2) for j in (3, 4))
    assert next(end for end in ends if end.device == "node0").flows == tuple((b, a) for a, b in uplink.flows)
    assert [(name, len(text)) for name, text in bed.change(3, 50.0)] == [(bed.namespace("r3"), 6), (bed.namespace("n1"), 6)]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"ranks": 1}, "1 ranks"),
        ({"ranks": 65}, "65 ranks"),
        ({"ranks": 4, "per_node": 3, "slow_mbit": 1.0}, "nodes of 3"),
        ({"ranks": 4, "per_node": 2}, "uplinks of 0.0"),
        ({"ranks": 4, "fast_mbit": 0.0}, "carry nothing"),
        ({"ranks": 4, "queue": "red"}, "no queue 'red'"),
    ],
)
def test_fabrics_that_cannot_be_are_refused(keys, word):
    with pytest.raises(UsageError, match=word):
        Fabric(name="odd", **keys)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "part of Linux"),
        (lambda patch: patch.setattr(namespaces.shutil, "which", lambda tool: None), "install the package iproute2"),
        (lambda patch: patch.setattr(os, "geteuid", lambda: 1000), "takes root"),
    ],
)
def test_who_cannot_make_a_testbed_is_told_why(monkeypatch, change, word):
    if word == "takes root" and sys.platform == "linux":
        monkeypatch.setattr(namespaces.shutil, "which", lambda tool: f"/sbin/{tool}")
    change(monkeypatch)
    assert word in why_not()


def test_a_kernel_that_refuses_is_quoted(monkeypatch):
    def refuse(command, text=""):
        raise MeasurementError("mount --make-shared /var/run/netns failed: Operation not permitted")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespaces, "run", refuse)
    assert "Operation not permitted" in why_not()


def test_a_tool_that_fails_is_quoted_and_a_long_command_shortened():
    with pytest.raises(MeasurementError) as told:
        namespaces.run(["sh", "-c", f"echo refused >&2; exit 3; {'x' * 500}"])
    assert str(told.value) == f"sh -c echo refused >&2; exit 3; {'x' * 500}"[:SHOWN] + " ...: refused"
    with pytest.raises(MeasurementError, match=r"^sh -c exit 3: exit code 3$"):
        namespaces.run(["sh", "-c", "exit 3"])


@needs_namespaces
def test_a_testbed_is_made_and_removed_and_counts_nothing_yet():
    bed = Testbed(Fabric(name="t", ranks=3, per_node=0))
    with bed:
        assert there(bed.token) == sorted(bed.namespace(part) for part in ("core", "r0", "r1", "r2"))
        assert bed.counters() == {"dropped_packets": 0, "retransmitted_segments": 0}
    assert there(bed.token) == []
    assert not (namespaces.LOCKS / bed.token).exists()


@needs_namespaces
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_testbed_is_removed_whatever_happens_inside(error):
    bed = Testbed(Fabric(name="t", ranks=2))
    with pytest.raises(error), bed:
        raise error
    assert there(bed.token) == []


@needs_namespaces
def test_half_a_testbed_is_removed_when_the_rest_cannot_be_made(monkeypatch):
    bed = Testbed(Fabric(name="t", ranks=2))
    honest = namespaces.run

    def fail_at_tc(command, text=""):
        if command[0] == "tc":
            raise MeasurementError("tc: no such qdisc")
        return honest(command, text)

    monkeypatch.setattr(namespaces, "run", fail_at_tc)
    with pytest.raises(MeasurementError, match="no such qdisc"):
        bed.__enter__()
    assert there(bed.token) == []


HOLD = """
import sys, time
from moesim.lab.namespaces import Fabric, Testbed
with Testbed(Fabric(name="t", ranks=2)) as bed:
    print(bed.token, flush=True)
    time.sleep(60)
"""


def janitor_of(owner):
    """The shell that waits for the end of a process."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == owner and b"netns delete" in (place / "cmdline").read_bytes():
                return int(place.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError(f"{owner} has no janitor")


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_testbed_whose_owner_is_killed_is_removed_by_its_janitor(number):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        token = holder.stdout.readline().strip()
        assert len(there(token)) == 3
        holder.send_signal(number)
        holder.wait(10)
    assert wait_for(lambda: not there(token))
    assert wait_for(lambda: not (namespaces.LOCKS / token).exists())


@needs_namespaces
def test_a_second_interruption_does_not_stop_the_removal(monkeypatch):
    bed = Testbed(Fabric(name="t", ranks=2))
    honest = namespaces.run

    def interrupted(command, text=""):
        os.kill(os.getpid(), signal.SIGINT)
        return honest(command, text)

    bed.__enter__()
    monkeypatch.setattr(namespaces, "run", interrupted)
    bed.__exit__()  # no KeyboardInterrupt
    assert there(bed.token) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@needs_namespaces
def test_what_a_killed_run_left_behind_is_removed_and_what_another_uses_is_not():
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        token = holder.stdout.readline().strip()
        assert len(there(token)) == 3
        assert token not in remove_left_behind()
        assert len(there(token)) == 3  # its owner is alive
        assert token in in_use()
        os.kill(janitor_of(holder.pid), signal.SIGKILL)  # as if everything of that run had been killed at once
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        time.sleep(0.5)
        assert len(there(token)) == 3
        assert token in remove_left_behind()
        assert there(token) == []
        assert token not in in_use()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@needs_namespaces
def test_the_command_that_cleans_counts_what_it_removed():
    # The check whether a testbed can be made here removes leftovers too: it must not come first, or the command finds nothing.
    from click.testing import CliRunner

    from moesim.cli import main

    made = subprocess.run(["ip", "netns", "add", "moesimdeadbe-r0"], check=False)
    assert made.returncode == 0
    said = [CliRunner().invoke(main, ["measure", "testbed", "--clean"]) for _ in range(2)]
    assert [done.exit_code for done in said] == [0, 0]
    assert there("deadbe") == []
    assert said[0].stderr.startswith("removed ")
    assert "left behind" in said[1].stderr
