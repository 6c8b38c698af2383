"""Tables that people send each other, with all that goes wrong in them."""

import json

import numpy as np
import pytest

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import files_below, parse_csv, read_measured

GOOD = """# source: a laboratory
# units: time_us microseconds; size B
size,time_us,system,ratio
8,1.5,a,
16,2.5,b,0.5
"""


def test_types_notes_and_lines():
    table = parse_csv(GOOD, "t.csv")
    assert {name: column.dtype.kind for name, column in table.rows.items()} == {"size": "i", "time_us": "f", "system": "U", "ratio": "f"}
    assert table.rows["size"].tolist() == [8, 16]
    assert np.isnan(table.rows["ratio"][0])
    assert table.notes == ("source: a laboratory", "units: time_us microseconds; size B")
    assert table.lines.tolist() == [4, 5]
    assert table.refused == ()


def test_a_word_among_numbers_costs_its_row_only_and_is_told():
    table = parse_csv("size,time_us\n8,1.5\n16,fast\n32,3.5\n64,n/a\n", "t.csv")
    assert table.rows["size"].tolist() == [8, 32]
    assert [(item.rows, item.line, item.reason) for item in table.refused] == [
        (1, 3, "column time_us: 'fast' is not a number, and the other rows hold numbers"),
        (1, 5, "column time_us: 'n/a' is not a number, and the other rows hold numbers"),
    ]


def test_a_column_of_words_with_a_few_numbers_is_text():
    table = parse_csv("quant,time_us\nnone,1\nfp8,2\n4,3\n", "t.csv")
    assert table.rows["quant"].tolist() == ["none", "fp8", "4"]
    assert not table.refused


def test_negative_times_are_told_together():
    table = parse_csv("size,time_us\n8,-1.5\n16,-1.5\n32,3\n64,inf\n", "t.csv")
    assert table.rows["size"].tolist() == [32]
    assert [(item.rows, item.line, item.reason) for item in table.refused] == [
        (2, 2, "column time_us: the time -1.5 is negative"),
        (1, 5, "column time_us: the time inf is not finite"),
    ]


def test_a_row_of_another_length_is_told():
    table = parse_csv("a,b\n1,2\n3\n4,5,6\n7,8\n", "t.csv")
    assert table.rows["a"].tolist() == [1, 7]
    assert [(item.line, item.reason) for item in table.refused] == [
        (3, "1 cells where the header has 2"),
        (4, "3 cells where the header has 2"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("# only notes\n", "no header"),
        ("a,b\n", "a header and no rows"),
        ("a,a\n1,2\n", "'a' stands twice"),
        ("a,\n1,2\n", "column 2 of the header has no name"),
        ("1,2\n3,4\n", "where names of columns belong"),
        ("time_us;n\n1,5;2\n", "separated by semicolons; save the table with commas"),
        ("time_us\tn\n1\t2\n", "separated by tabs"),
        ('a,b\n"1,2\n', "not CSV"),
        ("# units: time_us milliseconds\ntime_us,n\n1,2\n", "time_us is in milliseconds, its name says microseconds"),
        ("# units: *_us ns\ntime_us,n\n1,2\n", "its name says microseconds"),
    ],
)
def test_what_is_no_table_is_refused(text, why):
    with pytest.raises(CalibrationError, match=why.replace("*", r"\*")):
        parse_csv(text, "t.csv")


def test_a_unit_line_about_other_columns_is_no_contradiction():
    assert len(parse_csv("# units: latency_us ms; times in seconds\ntime_us\n1\n", "t.csv").lines) == 1


def test_json_lines_keep_nested_values_and_tell_broken_lines(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"n": 1, "t": 0.5, "kept": [[1, 2]]}\n{broken\n[1]\n{"n": 2, "t": null, "kept": [[3]]}\n', encoding="utf-8")
    table = read_measured(file)
    assert table.rows["n"].dtype.kind == "i"
    assert np.isnan(table.rows["t"][1])
    assert table.rows["kept"][0] == [[1, 2]]
    assert table.lines.tolist() == [1, 4]
    assert [item.line for item in table.refused] == [2, 3]
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match="no line holds"):
        read_measured(file)


def test_arrays_of_an_archive_are_cells_of_one_row(tmp_path):
    np.savez(tmp_path / "t.npz", ids=np.arange(6).reshape(2, 3), name=np.array("x"))
    table = read_measured(tmp_path / "t.npz")
    assert table.rows["ids"][0].shape == (2, 3)
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(CalibrationError, match="NPZ"):
        read_measured(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CalibrationError, match="plain arrays"):
        read_measured(tmp_path / "objects.npz")


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(CalibrationError, match="byte 4 is not UTF-8"):
        read_measured(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(CalibrationError, match=r"\.xlsx is no table"):
        read_measured(tmp_path / "t.xlsx")
    with pytest.raises(CalibrationError, match="no such file"):
        read_measured(tmp_path / "missing.csv")
    (tmp_path / "t.json").write_text("{", encoding="utf-8")
    with pytest.raises(CalibrationError, match="not JSON"):
        read_measured(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    assert read_measured(tmp_path / "t.json").rows["document"][0] == {"a": 1}


def test_folders_are_read_deep_and_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.csv", "b/a.csv", ".hidden.csv"):
        (tmp_path / name).write_text("a\nx\n", encoding="utf-8")
    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)] == ["b/a.csv", "z.csv"]
    for wrong, why in ((tmp_path / "no", "no such folder"), (tmp_path / "z.csv", "is a file"), (tmp_path / "empty", "holds no files")):
        if why == "holds no files":
            wrong.mkdir()
        with pytest.raises(CalibrationError, match=why):
            files_below(wrong)


def test_every_shipped_table_is_read_without_a_complaint():
    from pathlib import Path

    from moesim.desk.validation_files import read_folder

    tables, unread = read_folder(Path(__file__).parents[1] / "data" / "measured")
    assert len(tables) >= 25
    assert {name.rpartition("/")[2] for name, _ in unread} == {"README.md"}
    assert [table.name for table in tables if table.refused] == []
