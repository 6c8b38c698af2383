"""Sealed predictions, and predictions beside measurements."""

import copy
import json
import math

import pytest

from moesim.base.errors import UsageError
from moesim.desk.sealed import check_seal, digest, sealed
from moesim.desk.testbed_files import tables
from moesim.study.testbed.outcome import compared


def document(**more):
    fabric = {"name": "star2", "ranks": 2, "per_node": 0, "fast_mbit": 100.0, "slow_mbit": 0.0, "queue": "flow"}
    exchange = {
        "kind": "exchange", "name": "a", "fabric": "star2", "pattern": "even", "bytes_per_pair": 8, "posting": "receives_first",
        "stagger_ms": 0.0, "degraded": False, "bytes": [[0, 8], [8, 0]], "stagger_s": [0.0, 0.0], "change": None, "predicted_s": 0.11,
        "baselines_s": {"port bound": 0.05},
    }  # fmt: skip
    layer = {
        "kind": "layer", "name": "b", "fabric": "star2", "tokens": 4, "hidden": 8, "expert_width": 8, "experts": 2, "top_k": 1,
        "capacity_factor": None, "drop": "position", "skew": 0.0, "popularity": "in_order", "posting": "receives_first", "backward": False,
        "kept": [[2, 2], [2, 2]], "predicted_s": 0.2, "baselines_s": {"balanced load": 0.2},
    }  # fmt: skip
    return sealed(
        {
            "fabrics": [fabric], "cases": [exchange, {**layer, "name": "c", "predicted_s": 0.3}, layer], "repeats": 3, "cores": 2,
            "probes": {"star2": {"counts_s": 1e-3, "all_to_all_s": 2e-3}}, "calibration": {"ffn": {"8x8,4": 1e-5}}, **more,
        }
    )  # fmt: skip


def measured(**cases):
    layer = {"kept": [[2, 2], [2, 2]], "dropped": 0, "phases": ["gate"], "marks_median_s": [[0.0, 0.1]] * 2}
    found = {"a": {"seconds": [0.1, 0.1, 0.1]}, "b": {"seconds": [0.25, 0.25, 0.26], **layer}, "c": {"seconds": [0.2, 0.2, 0.2], **layer}}
    return {"partial": "", "runs": [], "cases": {**found, **cases}}


def test_a_seal_is_the_hash_of_everything_else():
    content = sealed({"b": [1, 2.5], "a": {"x": None}})
    # Written out: keys sorted, no spaces.
    assert content["sha256"] == __import__("hashlib").sha256(b'{"a":{"x":null},"b":[1,2.5]}').hexdigest()
    check_seal(json.loads(json.dumps(content)), "here")
    assert digest(content) == content["sha256"]
    assert sealed(content) == content


@pytest.mark.parametrize("change", [lambda c: c["b"].append(3), lambda c: c.update(new=1), lambda c: c.pop("a")])
def test_a_changed_document_is_refused(change):
    content = copy.deepcopy(sealed({"a": 1, "b": [1]}))
    change(content)
    with pytest.raises(UsageError, match="changed after it was written"):
        check_seal(content, "here")


def test_a_document_without_a_seal_is_refused():
    with pytest.raises(UsageError, match="does not carry its own hash"):
        check_seal({"a": 1}, "here")


def test_errors_are_signed_and_in_per_cent_of_the_measurement():
    found = compared(document(), measured())
    case = found["cases"][0]
    assert case["sort"] == "exchange"
    assert case["error_pct"] == pytest.approx(10.0)
    assert case["baselines_pct"]["port bound"] == pytest.approx(-50.0)
    assert found["sorts"]["exchange"]["worst_pct"] == pytest.approx(10.0)
    layers = found["sorts"]["layer, forward"]
    # +50 % (0.3 of 0.2) and -20 % (0.2 of 0.25).
    assert (layers["n"], layers["mean_abs_pct"], layers["bias_pct"]) == (2, pytest.approx(35.0), pytest.approx(15.0))
    # The two layer cases compete: measured b > c, predicted c > b.
    assert (found["order"]["pairs"], found["order"]["wrong"]) == (1, 1)
    assert found["prediction"] == document()["sha256"]


def with_speeds(**reference):
    """Layer b takes 0.2 s on cores as calibrated and 0.3 s on cores of half the speed; the reference kernel was calibrated at 1 ms."""
    base = document()
    at = {"slowdown": [1.0, 2.0], "predicted_s": [0.2, 0.3], "baselines_s": {"balanced load": [0.2, 0.2]}}
    cases = [case | {"at_slowdown": at, "reference_s": 1e-3} if case["name"] == "b" else case for case in base["cases"]]
    found = measured()
    found["cases"]["b"] |= reference
    return compared(sealed({**base, "cases": cases}), found)


def test_a_step_is_held_against_what_was_foretold_for_cores_of_the_measured_speed():
    # Ranks needed 1.4 and 1.6 ms: 1.5 times the calibration. Foretold for that: 0.25 s, and 0.25 s were measured.
    case = next(case for case in with_speeds(reference_s=[1.4e-3, 1.6e-3])["cases"] if case["name"] == "b")
    assert case["error_pct"] == pytest.approx(-20.0)
    assert case["at_speed"]["slowdown"] == pytest.approx(1.5)
    assert case["at_speed"]["error_pct"] == pytest.approx(0.0)
    assert case["at_speed"]["baselines_pct"]["balanced load"] == pytest.approx(-20.0)
    # Beyond the speeds that were played, straight on: three times as slow is 0.4 s, half again as fast 0.15 s.
    for reference, predicted in ((3e-3, 0.4), (0.5e-3, 0.15)):
        case = next(case for case in with_speeds(reference_s=[reference])["cases"] if case["name"] == "b")
        assert case["at_speed"]["predicted_s"] == pytest.approx(predicted)


def test_where_nobody_timed_the_reference_nothing_is_said_of_speed():
    found = with_speeds(reference_s=[])
    assert all("at_speed" not in case for case in found["cases"])
    assert "at_speed" not in found["sorts"]["layer, forward"]
    assert "at_speed" not in with_speeds(reference_s=[1e-3])["sorts"]["layer, forward"]  # of one case only


def test_a_librarys_calls_are_held_against_the_range_of_their_orders():
    base = document()
    base["cases"][0] |= {"low_s": 0.9, "high_s": 1.2, "mean_s": 1.05}
    found = compared(sealed({**base}), measured(a={"seconds": [0.88, 1.0, 1.2, 1.4]}))  # 0.88 is within 3 % of 0.9
    case = next(case for case in found["cases"] if case["name"] == "a")
    assert case["orders"]["inside"] == pytest.approx(0.75)
    assert case["orders"]["mean_error_pct"] == pytest.approx((1.05 / 1.12 - 1) * 100)
    assert "orders" not in next(case for case in found["cases"] if case["name"] == "b")


def test_order_is_that_of_predictions_for_the_speeds_of_their_times():
    # b took 0.25 s on slow cores, c 0.2 s and was foretold 0.3 s: b counts as 0.4 s on cores three times as slow, and the order is right.
    assert with_speeds(reference_s=[3e-3])["order"]["wrong"] == 0
    assert with_speeds()["order"]["wrong"] == 1


def test_what_was_not_measured_is_named_and_the_rest_is_kept():
    found = compared(document(), measured(a={"seconds": []}) | {"partial": "a rank died"})
    assert found["unmeasured"] == ["a"]
    assert [case["name"] for case in found["cases"]] == ["c", "b"]
    assert found["partial"] == "a rank died"


def test_other_rows_than_foretold_are_told():
    other = {**measured()["cases"]["b"], "kept": [[3, 1], [2, 2]]}
    assert "b: the ranks kept other rows" in compared(document(), measured(b=other))["notes"][0]


def test_sorts_of_exchanges():
    base = document()
    late = {**base["cases"][0], "name": "late", "stagger_ms": 5.0}
    own = {**base["cases"][0], "name": "own", "posting": "library"}
    link = {**base["cases"][0], "name": "link", "change": {"after_s": 0.1, "rank": 0, "mbit": 25.0}}
    short = {**base["cases"][0], "name": "short"}
    cases = {name: {"seconds": [0.1]} for name in ("late", "own", "link")} | {"short": {"seconds": [0.01]}}
    found = compared({**base, "cases": [late, own, link, short]}, measured(**cases))
    assert [case["sort"] for case in found["cases"]] == [
        "exchange, late starts", "exchange, the library's own", "exchange, a link that changes", "exchange, below 50 ms",
    ]  # fmt: skip


def test_tables_have_the_columns_that_validate_reads(tmp_path):
    from moesim.desk.measured_tables import read_measured
    from moesim.study.validation.testbed_all_to_all import TestbedAllToAll
    from moesim.study.validation.testbed_layer import TestbedLayer

    base = document()
    files = tables(base, compared(base, measured()), measured())
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    exchanges = read_measured(tmp_path / "a2a_cases.csv").rows
    assert set(TestbedAllToAll.columns) <= set(exchanges)
    # 8 B at 100 Mbit/s, 1448 of 1514 B of a packet being data; both ways, so that acknowledgements take 66 of 7570 B more.
    assert TestbedAllToAll().predict(exchanges, {}).values[0] == pytest.approx(8 / (12.5e6 * 1448 / 1514) * (1 + 66 / 7570))
    assert "alpha_s" not in exchanges
    known = {**base, "posting": {"star2": 2e-3}}
    text = tables(known, compared(base, measured()), measured())["a2a_cases.csv"]
    (tmp_path / "a2a_cases.csv").write_text(text)
    assert read_measured(tmp_path / "a2a_cases.csv").rows["alpha_s"].tolist() == [2e-3]
    assert exchanges["cores"].tolist() == [2]
    assert "PARTIAL" not in text
    assert "# PARTIAL: a rank died\n" in tables(base, compared(base, measured()), measured() | {"partial": "a rank died"})["a2a_cases.csv"]
    # What ranks cost each other was known before: that is what steps are predicted with.
    base_known = document(crowded={"star2": {"8x8": 1e-3}})
    for case in base_known["cases"]:
        case["slowdown"] = 1.5
    found = measured()
    assert '"crowding": 1.5' in tables(base_known, compared(base_known, found), found)["moe_fwd_own.jsonl"]
    steps = read_measured(tmp_path / "moe_fwd_own.jsonl").rows
    assert set(TestbedLayer.columns) <= set(steps)
    assert steps["kept"][0] == [[2, 2], [2, 2]]
    assert set(files) == {"a2a_cases.csv", "moe_fwd_own.jsonl", "moe_fwd_own_calibration.json"}
    assert math.isclose(exchanges["median_s"][0], 0.1)


def test_the_all_to_alls_of_a_library_are_measured_in_a_run_of_their_own_and_more_often(monkeypatch):
    pytest.importorskip("torch")
    from moesim.lab import testbed
    from moesim.lab.launch import Outcome

    base = document(library_times=4)
    base["cases"] += [{**base["cases"][0], "name": "own", "posting": "library"}]
    base["cases"] += [{**base["cases"][0], "name": "link", "change": {"after_s": 0.1, "rank": 0, "mbit": 25.0}}]
    asked = []

    def play(fabric, job, **_):
        asked.append(([case.name for case in job.cases], job.repeats))
        return Outcome(ranks=[[], []], why="", interrupted=False), {}, []

    monkeypatch.setattr(testbed, "on_fabric", play)
    testbed.measure(sealed(base), seed=0, progress=lambda _: None)
    assert asked == [(["a"], 3), (["own"], 12), (["c", "b"], 3), (["link"], 3)]
    asked.clear()
    before = {key: value for key, value in base.items() if key != "library_times"}  # documents of before say nothing of it
    testbed.measure(sealed(before), seed=0, progress=lambda _: None)
    assert asked == [(["a", "own"], 3), (["c", "b"], 3), (["link"], 3)]
