"""Trace files: what is read, what is refused and in which words, and that writing and reading give the same trace."""

import io
import os
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.errors import ResultError, TraceError, UsageError
from moesim.desk.trace_files import read_trace, write_trace
from moesim.desk.trace_size import LARGEST_BYTES
from moesim.facts.routing import Fidelity
from moesim.facts.trace import Trace
from moesim.models.source.traces import named

SHIPPED = Path(__file__).parents[2] / "scenarios" / "traces" / "deepseek-v2-lite-intent.npz"
IDS = np.array([[[0, 2], [1, 3]], [[3, 1], [0, 1]], [[2, 0], [2, 1]]], dtype=np.uint8)  # 3 tokens, 2 layers, top-2
GATE = np.full(IDS.shape, 0.5, dtype=np.float16)


def saved(folder: Path, **arrays) -> Path:
    path = folder / "trace.npz"
    np.savez_compressed(path, **arrays)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_shipped_trace_is_what_its_readme_says():
    trace = read_trace(SHIPPED)
    assert trace.ids.shape == (8222, 26, 6)
    assert (trace.layers, trace.experts, trace.top_k, len(trace.sample_length)) == (26, 64, 6, 127)
    assert trace.fidelity == Fidelity.WEIGHTS
    assert not trace.experts_stated
    assert "deepseek-ai/ESFT" in trace.origin
    assert "MIT" in trace.origin
    assert not trace.ids.flags.writeable


def test_reading_follows_the_arrays(tmp_path):
    scores = np.arange(30, dtype=np.float32).reshape(3, 2, 5)
    path = saved(
        tmp_path, ids=IDS, gate=GATE, scores=scores, sample_len=np.array([2, 1]), step=np.array([0, 0, 4]), source=np.array([0, 1, 0]),
        experts=5, layers=np.array([3, 5]), readme="from here",
    )  # fmt: skip
    trace = read_trace(path)
    assert (trace.name, trace.experts, trace.experts_stated, trace.origin) == ("trace.npz", 5, True, "from here")
    assert trace.layer_numbers.tolist() == [3, 5]
    assert trace.step.tolist() == [0, 0, 4]
    assert trace.fidelity == Fidelity.SCORES
    assert np.array_equal(trace.scores, scores)


def test_padding_of_minus_one_is_no_choice(tmp_path):
    ids = np.array([[[0, -1, -1]], [[1, 2, -1]]])
    trace = read_trace(saved(tmp_path, ids=ids))
    assert (trace.experts, trace.top_k) == (3, 3)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"gate": GATE}, "array ids: missing; the file holds gate"),
        ({"ids": IDS, "counts": IDS}, "array counts: there are tokens (ids) and counts"),
        ({"ids": IDS[0]}, "array ids: has shape (2, 2), expected 3 dimensions"),
        ({"ids": IDS.astype(float)}, "array ids: holds float64, expected whole numbers"),
        ({"ids": IDS[:0]}, "array ids: has shape (0, 2, 2): there are no tokens in it"),
        ({"ids": np.where(IDS == 2, -3, IDS.astype(np.int32))}, "array ids: holds -3 at [0, 0, 1], expected at least -1"),
        ({"ids": np.full((2, 1, 2), -1)}, "array ids: every choice is -1"),
        ({"ids": IDS, "experts": 3}, "array ids: token 0, layer 1, choice 1: expert 3 does not exist, experts are 0 to 2"),
        ({"ids": IDS, "experts": 0}, "array experts: holds 0"),
        ({"ids": IDS, "experts": np.array([4, 4])}, "array experts: has shape (2,), expected a single number"),
        ({"ids": np.array([[[0, 1], [1, 2]], [[0, 1], [3, 3]]])}, "array ids: token 1, layer 1: expert 3 is chosen twice"),
        ({"ids": np.tile(np.array([*range(13), 5]), (2, 1, 1))}, "array ids: token 0, layer 0: expert 5 is chosen twice"),
        ({"ids": IDS, "gate": GATE[:2]}, "array gate: has shape (2, 2, 2), but ids has (3, 2, 2)"),
        ({"ids": IDS, "gate": np.where(IDS == 2, np.nan, GATE)}, "array gate: holds nan at [0, 0, 1]"),
        ({"ids": IDS, "gate": np.where(IDS == 2, -0.25, GATE)}, "array gate: holds -0.25 at [0, 0, 1]"),
        ({"ids": IDS, "gate": np.where(IDS == 2, np.inf, GATE)}, "array gate: holds inf at [0, 0, 1]"),
        ({"ids": IDS, "gate": IDS}, "array gate: holds uint8, expected floating-point"),
        ({"ids": IDS, "scores": np.zeros((3, 4))}, "array scores: has shape (3, 4), expected (3, 2, experts)"),
        ({"ids": IDS, "scores": np.zeros((3, 2, 4)), "experts": 5}, "array scores: has 4 experts, but the array experts says 5"),
        ({"ids": IDS, "sample_len": np.array([2, 2])}, "array sample_len: sums to 4, but ids has 3 tokens"),
        ({"ids": IDS, "sample_len": np.array([4, -1])}, "array sample_len: holds -1 at [1]"),
        ({"ids": IDS, "step": np.array([0, 1])}, "array step: has 2 entries, but ids has 3 tokens"),
        ({"ids": IDS, "step": np.array([0, 2, 1])}, "array step: falls from 2 to 1 at token 2"),
        ({"ids": IDS, "source": np.array([0, 1, 0])}, "array source: falls from 1 to 0 at token 2"),
        ({"ids": IDS, "source": np.array([1, 0, 0]), "step": np.array([0, 0, 1])}, "array source: falls from 1 to 0 at token 1"),
        ({"ids": IDS, "source": np.array([0, 1, 2]), "ranks": 2}, "array source: token 2: rank 2 does not exist, ranks are 0 to 1"),
        ({"ids": IDS, "ranks": 2}, "array ranks: says 2, but no array source says which tokens"),
        ({"ids": IDS, "source": np.array([0, 1, 2]), "ranks": 2**40}, "array ranks: 1099511627776 is too large"),
        ({"ids": IDS, "source": np.array([0, 1, 2**40])}, "array source: 1099511627776 is too large"),
        ({"ids": IDS, "rank": 2}, "array rank: unknown name; did you mean 'ranks'?"),
        ({"ids": IDS, "experts": 2**40}, "array experts: 1099511627776 is too large to be the number of experts (at most 1000000)"),
        ({"ids": IDS.astype(np.int64) << 40}, "array ids: 3298534883329 is too large to be the number of experts"),
        ({"counts": np.ones((2, 3)), "axes": ["layer", "expert"], "ranks": 3}, "array ranks: says 3, but counts has no dimension 'source'"),
        ({"counts": np.ones((2, 1, 3)), "axes": ["layer", "source", "expert"], "ranks": 3}, "array ranks: says 3, but counts has 1 "),
        ({"ids": IDS, "layers": 3}, "array layers: says 3, but there are 2"),
        ({"ids": IDS, "layers": np.array([1, 2, 3])}, "array layers: names 3 layers, but there are 2"),
        ({"ids": IDS, "layers": np.array([2, 2])}, "array layers: [2, 2] must rise"),
        ({"ids": IDS, "readme": np.array(3)}, "array readme: holds int64, expected text"),
        ({"ids": IDS, "gates": GATE}, "array gates: unknown name; did you mean 'gate'?"),
        ({"ids": np.array([[[0, 1]], None], dtype=object)}, "array ids: holds Python objects, which are never unpickled"),
        ({"counts": np.ones((2, 3))}, "array axes: missing; it names the 2 dimensions"),
        ({"counts": np.ones((2, 3)), "axes": ["layer", "experts"]}, "array axes: unknown dimension 'experts'; did you mean 'expert'?"),
        ({"counts": np.ones((2, 3)), "axes": ["step", "expert"]}, "array axes: 'layer' is missing from ['step', 'expert']"),
        ({"counts": np.ones((2, 3, 1)), "axes": ["layer", "expert"]}, "['layer', 'expert'], but counts has shape (2, 3, 1)"),
        ({"counts": np.ones((2, 2)), "axes": ["layer", "layer"]}, "array axes: 'layer' is there 2 times"),
        ({"counts": np.array([[1.0, 0.5]]), "axes": ["layer", "expert"]}, "array counts: holds 0.5 at [0, 1] (layer, expert)"),
        ({"counts": np.array([[1, -4]]), "axes": ["layer", "expert"]}, "array counts: holds -4 at [0, 1]"),
        ({"counts": np.array([[1.0, np.nan]]), "axes": ["layer", "expert"]}, "array counts: holds nan at [0, 1]"),
        ({"counts": np.zeros((1, 4), dtype=int), "axes": ["layer", "expert"]}, "array counts: of shape (1, 4) holds no routes"),
        ({"counts": np.ones((1, 4), dtype=int), "axes": ["layer", "expert"], "top_k": 5}, "array top_k: is 5, more than the 4 experts"),
        ({"counts": np.ones((1, 4), dtype=int), "axes": ["layer", "expert"], "experts": 5}, "array experts: says 5, but counts has 4"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused_in_one_line(tmp_path, arrays, said):
    assert said in refusal(saved(tmp_path, **arrays))


def test_files_that_are_no_traces_are_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "missing.npz")
    assert "cannot be read" in refusal(tmp_path)
    empty = tmp_path / "empty.npz"
    empty.touch()
    assert "the file is empty" in refusal(empty)
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    assert "not an NPZ archive" in refusal(text)
    for name in ("records.pt", "records.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
        assert "never opened" in refusal(tmp_path / name)
    lone = tmp_path / "lone.npz"
    with lone.open("wb") as stream:
        np.save(stream, IDS)
    assert "not an NPZ archive" in refusal(lone)
    other = tmp_path / "other.npz"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("ids", b"no array")
    assert "not a NumPy array" in refusal(other)


def test_a_pickle_inside_an_archive_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "trap.npz"
    np.savez(path, ids=np.array([Trap()], dtype=object))
    assert "never unpickled" in refusal(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_a_truncated_archive_is_refused(tmp_path, share):
    rng = np.random.default_rng(0)
    content = saved(tmp_path, ids=np.argsort(rng.random((500, 4, 8)), axis=2)).read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(content[: int(len(content) * share)])
    refusal(path)


def test_a_damaged_archive_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    content = bytearray(saved(tmp_path, ids=np.argsort(rng.random((500, 4, 8)), axis=2)).read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 26, 6)})
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", header.getvalue())
    assert "array ids: brings the trace to 156000 TB of memory, more than the 4.29 GB that are read" in refusal(path)


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fail if what runs here has more than so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_an_array_that_claims_more_than_it_holds_is_refused_before_memory_is_asked_for(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (200 * 2**20, 1, 1)})
    path = tmp_path / "short.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", header.getvalue() + b"\0" * 100)
    with little_memory(20 * 2**20):
        assert "array ids: claims 210 MB and holds 228 bytes: cut short" in refusal(path)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    # The limit is lowered, so that the test need not write 4 GiB; two arrays are over it together, neither is alone.
    monkeypatch.setattr("moesim.desk.trace_size.LARGEST_BYTES", 48 * 2**20)
    ids, gate = np.zeros((2**25, 1, 1), dtype=np.uint8), np.zeros((2**23, 1, 1), dtype=np.float32)
    path = saved(tmp_path, ids=ids, gate=gate)
    assert path.stat().st_size < 2**20
    del ids, gate
    with little_memory(20 * 2**20):
        assert "array gate: brings the trace to 67.1 MB of memory, more than the 50.3 MB" in refusal(path)
    # What is no array counts as well, and what will not be read does not.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids", b"\0" * (2**26))
    assert "array ids: brings the trace to 67.1 MB" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.save(content, IDS)
        archive.writestr("ids.npy", content.getvalue())
        archive.writestr("photographs", b"\0" * (2**26))
    assert read_trace(path).tokens == 3


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x93NUMPY\x02\x00" + (2**30).to_bytes(4, "little") + b" " * 100, "has a header of 1073741836 bytes"),
        (b"\x93NUMPY\x03\x00" + (20).to_bytes(4, "little") + b" " * 20, "is in version 3 of NumPy's format"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"nonsense" * 2, "cannot be read"),
        (b"\x93NUMPY\x01\x00\x00\x00", "cannot be read"),
        (b"\x93NUM", "not a NumPy array"),
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path, start, said):
    path = tmp_path / "odd.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", start)
    assert said in refusal(path)


def test_the_largest_trace_that_is_read_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "traces.md").read_text(encoding="utf-8")
    assert LARGEST_BYTES == 4 * 2**30
    assert "4 GiB" in page
    assert "ranks" in page


def test_counts_are_turned_to_step_layer_source_expert(tmp_path):
    counts = np.arange(24).reshape(4, 3, 2)  # experts, sources, layers
    trace = read_trace(saved(tmp_path, counts=counts, axes=["expert", "source", "layer"], top_k=2))
    assert trace.counts.shape == (1, 2, 3, 4)
    assert trace.counts[0, 1, 2, 3] == counts[3, 2, 1]
    assert (trace.fidelity, trace.top_k, trace.experts, trace.ranks) == (Fidelity.COUNTS_BY_SOURCE, 2, 4, 3)
    plain = read_trace(saved(tmp_path, counts=counts.astype(float)[:, 0], axes=["expert", "layer"]))
    assert plain.counts.shape == (1, 2, 1, 4)
    assert (plain.fidelity, plain.top_k) == (Fidelity.COUNTS, 0)


CSV = """# source: somewhere
# licence: MIT
task,layer,expert,token_count,gate_weight_sum
law,1,0,5,0.1
law,1,2,7,0.2
law,4,1,3,0.3
intent,1,0,1,0.4
"""


def table(folder: Path, text: str) -> Path:
    path = folder / "counts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_counts_is_read(tmp_path):
    trace = read_trace(table(tmp_path, CSV), task="law")
    assert trace.counts.tolist() == [[[[5, 0, 7]], [[0, 3, 0]]]]
    assert trace.layer_numbers.tolist() == [1, 4]
    assert (trace.name, trace.fidelity, trace.origin) == ("counts.csv, task law", Fidelity.COUNTS, "source: somewhere\nlicence: MIT")
    by_source = read_trace(table(tmp_path, "step,source,layer,expert,token_count\n7,0,0,0,1\n7,1,0,1,2\n9,1,0,0,3\n"))
    assert by_source.counts.tolist() == [[[[1, 0], [0, 2]]], [[[0, 0], [3, 0]]]]
    assert by_source.fidelity == Fidelity.COUNTS_BY_SOURCE
    assert (by_source.ranks, by_source.named_ranks) == (None, 2)  # a table cannot state how many ranks there were


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        (CSV, None, ": holds 2 tasks (law, intent); choose one with task"),
        (CSV, "laws", ": there is no task 'laws'; did you mean 'law'?"),
        ("# nothing\n", None, "there is no header line"),
        ("layer,expert,token_count\n", None, "there are no counts below the header"),
        ("layer,expert,tokens\n1,0,1\n", None, ":1: column 'token_count' is missing"),
        ("layer,expert,token_count\n1,0\n", None, ":2: 2 cells, but the header has 3"),
        ("layer,expert,token_count\n1,0,1.5\n", None, ":2: column token_count: '1.5' is not a whole number"),
        ("layer,expert,token_count\n1,-2,1\n", None, ":2: column expert: -2 is less than 0"),
        ("layer,expert,token_count\n1,99999999999,1\n", None, ":2: column expert: 99999999999 is too large"),
        ("layer,expert,token_count\n1,0,1\n\n1,0,2\n", None, ":4: layer 1, expert 0 is there twice"),
        ("layer,expert,token_count\n1,0,0\n", None, "all counts are 0"),
        ("layer,source,expert,token_count\n1,999999,999999,1\n", None, "make a table of 8 TB, more than the 4.29 GB that are read"),
    ],
)
def test_wrong_tables_are_refused_with_their_line(tmp_path, text, task, said):
    assert said in refusal(table(tmp_path, text), task=task)


def test_a_table_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_bytes(b"\xff\xfe\x00layer")
    assert "cannot be read as text" in refusal(path)
    assert "not several tasks" in refusal(saved(tmp_path, ids=IDS), task="law")


@st.composite
def traces(draw) -> Trace:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    experts = draw(st.integers(1, 300))
    layers, top_k = draw(st.integers(1, 3)), draw(st.integers(1, min(experts, 5)))
    origin = draw(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12))
    numbers = np.sort(rng.choice(9, layers, replace=False)) if draw(st.booleans()) else None
    common = {"name": "t.npz", "digest": "", "layers": layers, "experts": experts, "layer_numbers": numbers, "origin": origin}
    if draw(st.booleans()):
        by_source = draw(st.booleans())
        counts = rng.integers(0, 9, (draw(st.integers(1, 3)), layers, draw(st.integers(1, 3)) if by_source else 1, experts))
        counts[0, 0, 0, 0] += 1
        return named(
            Trace(
                **common,
                top_k=draw(st.sampled_from([0, top_k])),
                counts=counts,
                by_source=by_source,
                ranks=counts.shape[2] if by_source else None,
            )
        )
    tokens = draw(st.integers(1, 6))
    ids = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :top_k].astype(draw(st.sampled_from(["u2", "i4", "i8"])))
    optional = {
        "weights": rng.random(ids.shape).astype(draw(st.sampled_from(["f2", "f4"]))),
        "scores": rng.standard_normal((tokens, layers, experts)).astype(np.float32),
        "sample_length": np.array([tokens - 1, 1]),
        "step": np.sort(rng.integers(0, 3, tokens)),
        "source": np.zeros(tokens, dtype=np.int64),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    ranks = draw(st.sampled_from([None, 1, 4])) if "source" in chosen else None
    return named(Trace(**common, top_k=top_k, ids=ids, ranks=ranks, **{name: optional[name] for name in chosen}))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trace=traces())
def test_l13_a_trace_survives_writing_and_reading(tmp_path, trace):
    path = tmp_path / "t.npz"
    write_trace(trace, path)
    again = read_trace(path)
    assert again.digest == trace.digest
    for name in Trace.__slots__:
        one, other = getattr(trace, name), getattr(again, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        else:
            assert one == other, name
    assert again.fidelity == trace.fidelity


def test_l8_determinism_the_same_trace_is_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    trace = read_trace(SHIPPED)
    small = replace(trace, ids=trace.ids[:50], weights=trace.weights[:50], sample_length=None)
    write_trace(small, tmp_path / "one.npz")
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    write_trace(small, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_digest_is_of_the_content_not_of_the_file(tmp_path):
    stored, packed = tmp_path / "stored.npz", tmp_path / "packed.npz"
    np.savez(stored, ids=IDS, gate=GATE)
    np.savez_compressed(packed, gate=GATE, ids=IDS, readme="more words")
    assert read_trace(stored).digest == read_trace(packed).digest
    np.savez(stored, ids=IDS, gate=GATE * 2)
    assert read_trace(stored).digest != read_trace(packed).digest


def test_writing_replaces_whole_files_or_nothing(tmp_path):
    trace = read_trace(saved(tmp_path, ids=IDS))
    with pytest.raises(UsageError, match=r"written as NPZ; name the file out\.npz"):
        write_trace(trace, tmp_path / "out.csv")
    with pytest.raises(ResultError, match="cannot write"):
        write_trace(trace, tmp_path / "nowhere" / "out.npz")
    write_trace(trace, tmp_path / "trace.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]
