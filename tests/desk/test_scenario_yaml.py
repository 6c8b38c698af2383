"""Reading YAML 1.2 with places."""

import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.desk import yaml_core, yaml_tree
from moesim.desk.yaml_tree import parse_yaml


@pytest.fixture(params=["C", "Python"], autouse=True)
def parser(request, monkeypatch):
    """Every test runs with the C parser and with the one in Python."""
    if request.param == "C" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    chosen = yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader
    monkeypatch.setattr(yaml_tree, "_parser", lambda: chosen)


def data(text):
    tree, problems = parse_yaml(text, "f")
    assert problems == []
    return tree.data()


def only_problem(text):
    tree, problems = parse_yaml(text, "f")
    assert len(problems) == 1
    return str(problems[0]), tree


def test_core_schema_where_yaml_11_differs():
    # Expected: section 10.3.2 of the YAML 1.2.2 specification. YAML 1.1 gives text, text, False, 750, True, 1000 and a date.
    text = "[1e-6, 5e9, no, 12:30, on, 1_000, 2024-01-01, 0o17, 0x1F, .5, 1., +3, ~, Null, TRUE]"
    assert data(text) == [1e-6, 5e9, "no", "12:30", "on", "1_000", "2024-01-01", 15, 31, 0.5, 1.0, 3, None, None, True]


def test_infinity_and_nan():
    low, high, nan = data("[-.inf, .INF, .nan]")
    assert (low, high) == (-math.inf, math.inf)
    assert math.isnan(nan)


def test_quotes_and_tags_make_text():
    assert data("['1', \"no\", !!str 5, ! 7, !!float 3, !!int '4']") == ["1", "no", "5", "7", 3.0, 4]


def test_numbers_with_a_leading_zero_are_refused_but_read_on():
    message, tree = only_problem("a: 010")
    assert message == "f:1:4: a: 010 has a leading zero: write 10, 0o10 if octal was meant, or quotes if it is text"
    assert tree.data() == {"a": 10}
    assert "0o" not in only_problem("a: -089")[0]  # 89 is not octal
    assert data("[0, 0.5, '010']") == [0, 0.5, "010"]


def test_every_value_knows_its_place():
    tree, _ = parse_yaml("a: 1\nb:\n  - x\n  - {c: 'é', d: 2}\n", "f")
    item = tree.child("b").child(1).child("d")
    assert (item.key.line, item.key.column) == (4, 14)
    assert (item.place.line, item.place.column) == (4, 17)
    assert (tree.child("b").key.line, tree.child("b").place.line) == (2, 3)


def test_repeated_keys_are_all_reported():
    _, problems = parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 3\na: 4\n", "f")
    assert [str(problem) for problem in problems] == [
        "f:2:11: b.c: duplicate key 'c' (first in line 2)",
        "f:3:1: a: duplicate key 'a' (first in line 1)",
        "f:4:1: a: duplicate key 'a' (first in line 3)",
    ]


def test_keys_are_text_as_written():
    assert data("{1.0: a, true: b, null: c}") == {"1.0": "a", "true": "b", "null": "c"}


def test_anchors_and_merges():
    text = "base: &base {a: 1, b: {c: 2}}\none: {<<: *base, a: 3}\ntwo: {<<: [{z: 1}, *base], z: 2}\nthree: *base\n'<<': kept"
    read = data(text)
    assert read["one"] == {"a": 3, "b": {"c": 2}}
    assert read["two"] == {"z": 2, "a": 1, "b": {"c": 2}}
    assert read["three"] == {"a": 1, "b": {"c": 2}}
    assert read["<<"] == "kept"


def test_merged_values_keep_the_place_of_their_anchor():
    tree, _ = parse_yaml("base: &base {a: 1}\none: {<<: *base}\ntwo: *base\n", "f")
    assert tree.child("one").child("a").place.line == 1
    assert tree.child("two").key.line == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {<<: 5}", "f:1:9: a.<<: << merges mappings; this is none"),
        ("a: *b", "f:1:4: a: no anchor &b stands before this alias"),
        ("a: &a [1, *a]", "f:1:11: a.1: *a stands inside its own anchor"),
        ("a: !foo b", "f:1:4: a: the tag !foo has no meaning here; leave it out"),
        ("a: !!python/name:os.system x", "f:1:4: a: the tag !!python/name:os.system has no meaning here; leave it out"),
        ("a: !!int x", "f:1:4: a: 'x' is not a YAML int"),
        ("? [a]\n: 1", "f:1:3: a key must be one word, not a mapping or a list"),
        ("a: 1\n---\nb: 2", "f:2:1: a second YAML document starts here; one file holds one scenario"),
        ("[" * 70 + "]" * 70, "f:1:65: values are nested more than 64 deep"),
        ("a: " + "9" * 5000, "f:1:4: a: a number of 5000 digits is too long"),
        ("a: \x00", "f:1:4: this is not YAML: the character U+0000 is not allowed"),
        ("a: 1\nb: \ud800", "f:2:4: this is not YAML: the character U+D800 is not allowed"),
    ],
)
def test_problems_of_the_text(text, expected):
    assert only_problem(text)[0] == expected


@pytest.mark.parametrize(
    ("text", "start", "hint"),
    [
        ("a: [b\n", "f:2:1: this is not YAML: ", "line 1"),
        ("a:\n\tb: 1", "f:2:1: this is not YAML: ", "a tab cannot indent"),
        ("a: b: c", "f:1:5: this is not YAML: ", "needs quotes"),
        ("a: @b", "f:1:4: this is not YAML: ", "text that starts with @ needs quotes"),
    ],
)
def test_syntax_errors_have_a_place_and_a_hint(text, start, hint):
    message, tree = only_problem(text)
    assert tree is None
    assert message.startswith(start)
    assert hint in message


def test_aliases_of_aliases_are_stopped():
    # Ten lines that spell out to 10**10 values.
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "more than 100000 values" in only_problem("\n".join(lines))[0]


def test_deep_nesting_does_not_overflow_the_stack():
    # yaml.compose with libyaml ends the process here.
    assert "nested more than" in only_problem("[" * 200_000)[0]


def test_a_parser_with_a_limit_of_its_own_gives_the_same_message(monkeypatch):
    # libyaml counts flow levels itself in newer releases, and gives up while it looks for the end of a possible key.
    def parse(text, **loader):
        start, end = yaml.Mark("f", 0, 0, 0, None, None), yaml.Mark("f", 1000, 0, 1000, None, None)
        yield yaml.StreamStartEvent(start, start)
        raise yaml.parser.ParserError("while increasing flow level", start, "exceeded maximum nesting depth", end)

    monkeypatch.setattr(yaml, "parse", parse)
    message, tree = only_problem("[" * 2000)
    assert message == "f:1:1001: values are nested more than 64 deep"
    assert tree is None


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%#?,\n\t 01.~<\\é\x00\ud800"), max_size=40))
@example("? a")
@example("&a")
@example("")
@example("- &x\n- *x")
def test_any_text_gives_a_tree_or_problems(text):
    tree, problems = parse_yaml(text, "f")
    assert all(problem.file == "f" and problem.message for problem in problems)
    if tree is None and not problems:
        # Nothing in it but comments and markers.
        assert yaml_core.plain(text.split("#")[0].strip(" \n\t-.")) is None
