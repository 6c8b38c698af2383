"""A small testbed from end to end: predictions first, real ranks, a link that changes, and what is left when a rank dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.desk.sealed import check_seal, sealed
from moesim.lab import namespaces
from moesim.lab.namespaces import why_not

torch = pytest.importorskip("torch")
REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "namespaces can be made here")


def document(cases, repeats=2):
    fabric = {"name": "pair", "ranks": 2, "per_node": 0, "fast_mbit": 100.0, "slow_mbit": 0.0, "queue": "flow"}
    return sealed({"fabrics": [fabric], "cases": cases, "repeats": repeats})


def case(name, size, **more):
    given = {
        "kind": "exchange", "name": name, "fabric": "pair", "pattern": "even", "bytes": [[0, size], [size, 0]], "posting": "receives_first",
        "stagger_s": [0.0, 0.0], "change": None, "predicted_s": 1.0, "baselines_s": {}, "stagger_ms": 0.0,
    }  # fmt: skip
    return given | more


def left():
    return [name for name in namespaces._namespaces() if name.startswith(f"moesim{os.getpid():x}-")]


def test_bytes_take_the_time_that_links_give_them_and_a_link_changes_in_the_middle():
    from moesim.lab.testbed import measure

    # 500,000 B at 100 Mbit/s, of which 1448/1514 is data: 41.8 ms. Then 1,000,000 B whose link carries a quarter from 30 ms on:
    # 30 ms x 11.96 MB/s = 0.359 MB are gone by then, and 0.641 MB take 4 x 53.6 ms: 244 ms in all.
    change = {"after_s": 0.03, "rank": 0, "mbit": 25.0}
    found = measure(document([case("plain", 500_000), case("change", 1_000_000, change=change)]), seed=0, progress=lambda _: None)
    assert found["partial"] == ""
    assert left() == []
    plain, changed = (min(found["cases"][name]["seconds"]) for name in ("plain", "change"))
    # Wide: other programs may run on this machine. A link that were not shaped would take 1 ms, one that did not change 84 ms.
    assert 0.038 < plain < 0.15
    assert 0.21 < changed < 0.6
    assert [note["asked_s"] >= 0.03 for note in found["cases"]["change"]["changes"]] == [True] * 4  # two are warm-up
    assert found["runs"][0]["retransmitted_segments"] < 50


def test_changed_predictions_are_not_measured():
    from moesim.base.errors import UsageError
    from moesim.lab.testbed import measure

    content = document([case("a", 1000)])
    content["cases"][0]["predicted_s"] = 2.0
    with pytest.raises(UsageError, match="changed after it was written"):
        measure(content, seed=0, progress=lambda _: None)


SMALL = """
import sys
import moesim.study.testbed.plan as plan
star = plan.FabricPlan(name="pair", ranks=2)
case = plan.ExchangePlan(name="even", fabric="pair", pattern="even", bytes_per_pair=2_000_000)
plan.quick_plan = lambda: plan.Plan(fabrics=(star,), exchanges=(case,), layers=(), repeats=REPEATS)
from moesim.cli import main
main(["measure", "testbed", "--quick", "-o", sys.argv[1], "--most-exchange", "0"])
"""


def command(folder, repeats):
    return [sys.executable, "-c", SMALL.replace("REPEATS", str(repeats)), str(folder)]


def test_an_interrupted_run_keeps_its_predictions_and_removes_what_it_made(tmp_path):
    with subprocess.Popen(command(tmp_path, 1000), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        said = []
        for line in running.stderr:
            said.append(line)
            if "1 exchange case" in line:
                # The file was there before the first measurement began.
                content = json.loads((tmp_path / "predictions.json").read_text())
                time.sleep(2.0)
                running.send_signal(signal.SIGINT)
                break
        said += running.stderr.readlines()
        code = running.wait(60)
    assert code == 130, said
    check_seal(content, "here")
    assert content["cases"][0]["predicted_s"] == pytest.approx(2e6 / (12.5e6 * 1448 / 1514), rel=0.02)
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert kept["prediction"] == content["sha256"]
    assert kept["partial"].endswith("interrupted")
    assert not [name for name in namespaces._namespaces() if name.startswith(f"moesim{running.pid:x}-")]


def ranks_of(pid):
    """Processes in the namespaces of a run's ranks."""
    found = []
    for rank in range(2):
        said = subprocess.run(["ip", "netns", "pids", f"moesim{pid:x}-r{rank}"], capture_output=True, text=True, check=False)
        found += [int(word) for word in said.stdout.split()]
    return found


def sent(pid):
    """Bytes that rank 0 of a run has sent."""
    said = subprocess.run(
        ["tc", "-n", f"moesim{pid:x}-r0", "-s", "-j", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True, check=False
    )
    return max((int(queue.get("bytes", 0)) for queue in json.loads(said.stdout or "[]")), default=0)


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def running_with_bytes(running):
    """Wait until a run measures: five messages of 2 MB have left rank 0, two of them in warm-up."""
    for line in running.stderr:
        if "1 exchange case" in line:
            break
    return wait_for(lambda: sent(running.pid) > 10_000_000)


def namespaces_of(pid):
    return [name for name in namespaces._namespaces() if name.startswith(f"moesim{pid:x}-")]


def alive(pid):
    """Tell whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_that_is_killed_leaves_no_ranks_and_no_namespaces(tmp_path):
    with subprocess.Popen(command(tmp_path, 1000), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running_with_bytes(running)
        ranks = ranks_of(running.pid)
        assert len(ranks) == 2
        running.kill()
        running.wait(20)
    assert wait_for(lambda: not any(map(alive, ranks)), 20.0)
    assert wait_for(lambda: not namespaces_of(running.pid), 20.0)


def test_a_rank_that_is_killed_ends_the_run_as_partial_with_what_was_measured(tmp_path):
    with subprocess.Popen(command(tmp_path, 1000), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running_with_bytes(running)
        os.kill(ranks_of(running.pid)[-1], signal.SIGKILL)
        said = running.stderr.read()
        code = running.wait(60)
    assert code == 1, said
    assert "partial: pair: rank 1 was ended by SIGKILL" in said
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert kept["partial"] == "pair: rank 1 was ended by SIGKILL"
    assert 1 <= kept["cases"][0]["repeats"] < 1000
    assert namespaces_of(running.pid) == []


def test_the_command_compares_writes_tables_and_misses_a_target_that_cannot_be_met(tmp_path):
    done = subprocess.run(command(tmp_path, 2), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr  # nothing is off by exactly 0 %
    assert "even: off by" in done.stderr
    assert "exchange: 1 cases" in done.stdout
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["partial"] == ""
    assert found["cases"][0]["repeats"] == 2
    assert -60 < found["cases"][0]["error_pct"] < 10  # a busy machine makes it slower, nothing makes it faster than its links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a2a_cases.csv", "comparison.json", "measured.json", "predictions.json"]
