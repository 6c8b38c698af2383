"""Every mistake is found, placed, and comes with the likely fix; nothing in a file causes a traceback."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_texts import SMALL

from moesim.base.errors import PluginError, ScenarioError
from moesim.desk.scenario_file import load_scenario, read_scenario


def problems(text, *overrides, folder="/"):
    with pytest.raises(ScenarioError) as caught:
        read_scenario(text, file="f.yaml", folder=folder, overrides=overrides)
    return [str(problem) for problem in caught.value.problems]


def only(text, *overrides, folder="/"):
    found = problems(text, *overrides, folder=folder)
    assert len(found) == 1, found
    return found[0]


def line(number):
    return SMALL.split("\n")[number - 1]


def at(number, word):
    """Where a word of a line of SMALL stands."""
    return f"f.yaml:{number}:{line(number).index(word) + 1}: "


def test_all_problems_at_once_in_the_order_of_the_file():
    text = (
        SMALL.replace("seed: 1", "sead: 1")
        .replace("top_k: 2", "top_k: 20")
        .replace("gpus_per_node", "gpus_per_nod")
        .replace("400 Gb/s", "400 Gbs")
        .replace("tokens_per_gpu: 256", "tokens_per_gpu: true")
        .replace("megatron", "megatrn")
        .replace("contiguous}", "contiguous}\n  placement: {kind: round_robin}")
    )
    found = problems(text)
    starts = [message.split(": ")[0] for message in found]
    assert starts == sorted(starts, key=lambda place: [int(number) for number in place.split(":")[1:]])
    expected = [
        ("f.yaml:2:1: sead: unknown key 'sead'; did you mean 'seed'?"),
        ("f.yaml:11:3: model.top_k: top_k (20) is larger than experts (16)"),
        ("f.yaml:15:56: cluster.gpus_per_nod: unknown key 'gpus_per_nod'; did you mean 'gpus_per_node'?"),
        ("f.yaml:15:78: cluster.nic: unknown unit 'Gbs' of a bandwidth; did you mean"),
        ("f.yaml:17:45: workload.tokens_per_gpu: True is not a whole number"),
        ("f.yaml:20:20: policy.capacity.rule: unknown rule 'megatrn'; did you mean 'megatron'?"),
        ("f.yaml:22:3: policy.placement: duplicate key 'placement' (first in line 21)"),
    ]
    assert len(found) == len(expected)
    for message, start in zip(found, expected, strict=True):
        assert message.startswith(start)


def test_a_missing_key_is_placed_at_its_mapping():
    assert only(SMALL.replace("parallel: {ep: 8}", "parallel: {}")) == "f.yaml:16:1: parallel: missing key 'ep'"
    assert only(SMALL.replace("name: small\n", "")) == "f.yaml:1:1: missing key 'name'"
    assert only(SMALL.replace("  top_k: 2\n", "")) == "f.yaml:5:1: model: missing key 'top_k'"
    message = only(SMALL.replace("kind: nvlink_nodes, ", ""))
    assert message.startswith("f.yaml:15:1: cluster: missing key 'kind' (known: ")


def test_the_tag_counts_among_the_known_keys():
    message = only(SMALL.replace("{kind: contiguous}", "{kind: contiguous, kin: 1}"))
    assert message == "f.yaml:21:33: policy.placement.kin: unknown key 'kin'; did you mean 'kind'? (known: kind)"


def test_the_model_knows_preset_and_config():
    message = only(SMALL.replace("  name: tiny", "  presett: x\n  name: tiny"))
    assert message.startswith("f.yaml:6:3: model.presett: unknown key 'presett'; did you mean 'preset'?")


def test_an_unknown_kind_is_placed_at_its_value():
    assert only(SMALL.replace("kind: contiguous", "kind: contigous")).startswith(
        at(21, "contiguous") + "policy.placement.kind: unknown kind 'contigous'; did you mean 'contiguous'?"
    )
    assert only(SMALL.replace("{kind: contiguous}", "contigous")).startswith(
        at(21, "{kind") + "policy.placement: unknown kind 'contigous'; did you mean 'contiguous'?"
    )
    assert only(SMALL.replace("kind: contiguous", "kind: [1]")).startswith(at(21, "contiguous") + "policy.placement.kind: unknown kind [1]")


def test_a_rule_between_fields_names_its_field():
    assert only(SMALL, "warmup=3") == "override warmup=3: warmup: warmup (3) leaves none of the 3 steps to measure"
    assert only(SMALL.replace("steps: 3", "steps: 1")) == "f.yaml:4:1: warmup: warmup (1) leaves none of the 1 steps to measure"
    # The field that breaks the rule is not in the file: the section is as near as it gets.
    text = SMALL[: SMALL.index("model:")] + "model: {preset: olmoe-1b-7b, layers: 2}\n" + SMALL[SMALL.index("cluster:") :]
    assert only(text) == "f.yaml:5:1: model.moe_layers: layer 15 does not exist: the model has layers 0 to 1"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("parallel: {ep: 8}", "parallel: 8", "f.yaml:16:11: parallel: expected a mapping with the keys ep, tp, pp, tensor, etp, cp, not 8"),
        (
            "parallel: {ep: 8}",
            "parallel:",
            "f.yaml:16:10: parallel: expected a mapping with the keys ep, tp, pp, tensor, etp, cp, not nothing",
        ),
        ("moe_layers: [0, 1]", "moe_layers: 1", "f.yaml:8:15: model.moe_layers: expected a list, not 1"),
        ("moe_layers: [0, 1]", "moe_layers: [0, x]", "f.yaml:8:19: model.moe_layers.1: 'x' is not a whole number"),
        ("name: small", "name: 1.5", "f.yaml:1:7: name: 1.5 is not text; put it in quotes"),
        ("name: small", "name: ''", "f.yaml:1:7: name: the text is empty"),
        ("steps: 3", "steps: 2.5", "f.yaml:3:8: steps: 2.5 is not a whole number"),
        ("steps: 3", "steps: 0x", "f.yaml:3:8: steps: '0x' is not a whole number"),
        ("steps: 3", "steps: 03", "f.yaml:3:8: steps: 03 has a leading zero: write 3, 0o3 if octal was meant, or quotes if it is text"),
        ("nic: 400 Gb/s", "nic: 400", "f.yaml:15:79: cluster.nic: 400 has no unit; write for example '400 Gb/s'"),
        ("sigma: 1e-1", "sigma: .nan", "f.yaml:18:35: routing.sigma: nan is not a finite number"),
        ("compare:\n", "compare: []\nx:\n", None),
        ("seed: 1", "seed: 1\nplugins: x.py", "f.yaml:3:10: plugins: expected a list, not 'x.py'"),
        ("seed: 1", "seed: 1\nplugins: [x.py]", "f.yaml:3:11: plugins.0: x.py: there is no such file (looked for /x.py)"),
        ("seed: 1", "seed: 1\nplugins: [7]", "f.yaml:3:11: plugins.0: 7 is not text; put it in quotes"),
        (
            "  dropless: {capacity: null}",
            "  dropless: 5",
            "f.yaml:23:13: compare.dropless: expected a mapping with the keys gate, capacity",
        ),
        ("factor: 1.0}", "fator: 1.0}", "f.yaml:24:22: compare.tight.capacity.fator: unknown key 'fator'; did you mean 'factor'?"),
    ],
)
def test_wrong_values(old, new, expected):
    assert old in SMALL
    if expected is None:
        assert problems(SMALL.replace(old, new))[0] == "f.yaml:22:10: compare: expected a mapping of names, not a list"
    else:
        assert only(SMALL.replace(old, new)).startswith(expected)


def test_what_a_variant_takes_from_the_base_is_reported_once():
    assert only(SMALL.replace("1.25", "-1")).startswith(at(20, "1.25") + "policy.capacity.factor: -1 is too small")


def test_problems_of_a_model_config_are_problems_of_the_scenario(tmp_path):
    text = SMALL[: SMALL.index("model:")] + "model: {config: c.json}\n" + SMALL[SMALL.index("cluster:") :]
    assert only(text, folder=tmp_path) == f"f.yaml:5:17: model.config: c.json: there is no such file (looked for {tmp_path}/c.json)"
    (tmp_path / "c.json").write_text("{")
    message = only(text.replace("ep: 8", "eq: 8").replace("eq: 8", "ep: 8"), folder=tmp_path)
    assert "c.json" in message
    found = problems(text.replace("ep: 8", "eq: 8"), folder=tmp_path)
    assert any("c.json" in message for message in found)
    assert any("unknown key 'eq'" in message for message in found)


def test_a_model_has_one_origin():
    text = SMALL[: SMALL.index("model:")] + "model: {preset: olmoe-1b-7b, config: c.json}\n" + SMALL[SMALL.index("cluster:") :]
    assert problems(text)[0] == "f.yaml:5:30: model.config: a model has either a preset or a config, not both"
    for nothing in ("null", "''", "[1]"):
        message = only(text.replace("preset: olmoe-1b-7b, config: c.json", f"config: {nothing}"))
        assert message == "f.yaml:5:17: model.config: expected the path of a Hugging Face config.json"
    text = text.replace("olmoe-1b-7b, config: c.json", "olmo-1b-7b, top_k: no")
    found = problems(text)
    assert found[0].startswith("f.yaml:5:17: model.preset: unknown model 'olmo-1b-7b'; did you mean 'olmoe-1b-7b'?")
    assert found[1] == "f.yaml:5:36: model.top_k: 'no' is not a whole number"
    assert len(found) == 2


# overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "override steps: write key=value, for example policy.capacity.factor=1.1"),
        ("=3", "override =3: write key=value"),
        ("policy..x=3", "override policy..x=3: write key=value"),
        ("polcy.capacity=null", "override polcy.capacity=null: polcy: unknown key 'polcy'; did you mean 'policy'?"),
        ("policy.capacity.fator=1", "override policy.capacity.fator=1: policy.capacity.fator: unknown key 'fator'; did you mean 'factor'?"),
        ("steps.x=3", "override steps.x=3: steps.x: steps is 3, not a mapping"),
        ("name.x=3", "override name.x=3: name.x: name is 'small', not a mapping"),
        ("model.moe_layers.0=3", "override model.moe_layers.0=3: model.moe_layers.0: model.moe_layers is a list; set all of it"),
        ("steps=[", "override steps=[: steps: this is not YAML"),
        ("steps=1,2", "override steps=1,2: steps: '1,2' is not a whole number"),
        ("cluster.nic=4 GBs", "override cluster.nic=4 GBs: cluster.nic: unknown unit 'GBs' of a bandwidth; did you mean"),
        ("policy.gate.k=3", "override policy.gate.k=3: policy.gate.k: unknown key 'k'"),
        ("policy.capacity={factor: 2}", "override policy.capacity={factor: 2}: policy.capacity: missing key 'rule' (known: "),
        ("name=\ud800", "override name=\ud800: name: this is not YAML: the character U+D800 is not allowed"),
    ],
)
def test_overrides_that_do_not_fit(override, expected):
    assert only(SMALL, override).startswith(expected)


# the file itself


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "f.yaml: the file is empty; 'moesim init' writes one to start from"),
        (b"# only a comment\n", "f.yaml: the file is empty"),
        (b"- a\n- b\n", "f.yaml:1:1: a scenario is a mapping of keys"),
        (b"name: x\nb: \xff\n", "f.yaml:2:4: the byte 0xff is not UTF-8"),
        (b"a: [b\n", "f.yaml:2:1: this is not YAML"),
        (b"\x00" * (5 * 1024 * 1024), "f.yaml: is larger than 4 MiB: this is not a scenario file"),
    ],
    ids=["empty", "comment", "list", "latin-1", "syntax", "large"],
)
def test_files_that_are_no_scenario(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenario("f.yaml")
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(expected)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    for path, expected in (
        ("smal.yaml", "smal.yaml: there is no such file; did you mean 'small.yaml'?"),
        ("nowhere/x.yaml", "nowhere/x.yaml: there is no such file"),
        (".", ".: this is a folder, not a scenario file"),
        ("small.yaml/x", "small.yaml/x: cannot be read: not a directory"),
        ("a\0b", "a\0b: cannot be read: "),
    ):
        with pytest.raises(ScenarioError) as caught:
            load_scenario(path)
        assert str(caught.value).startswith(expected)


def test_a_plugin_file_that_fails_is_a_problem_at_its_line(tmp_path):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    message = only(SMALL + "plugins: [broken_plugin.py]\n", folder=tmp_path)
    assert message.startswith(f"f.yaml:25:11: plugins.0: the plug-in file {tmp_path}/broken_plugin.py failed: ZeroDivisionError")


def test_a_plugin_that_fails_while_its_keys_are_read_is_named(tmp_path):
    (tmp_path / "clumsy_plugin.py").write_text(
        "from dataclasses import dataclass\nfrom moesim.base.registry import register\n"
        "@register('gate', 'clumsy')\n@dataclass(frozen=True, slots=True, kw_only=True)\nclass Clumsy:\n"
        "    def __post_init__(self):\n        raise KeyError('oops')\n"
    )
    with pytest.raises(PluginError, match="KeyError: 'oops'"):
        read_scenario(SMALL + "plugins: [clumsy_plugin.py]\n", file="f", folder=tmp_path, overrides=["policy.gate=clumsy"])


# no traceback, whatever the file says

WORDS = [
    "null",
    "[]",
    "{}",
    "-1",
    "0",
    "1e400",
    "true",
    "x",
    "'1'",
    "3 us",
    "[[1]]",
    "{kind: x}",
    "{kind: lognormal}",
    "*a",
    "!x y",
    "07",
    "\t",
    "'",
]


def mutated(seed):
    """A good file with a few lines, words or characters changed, moved or lost."""
    chance = random.Random(seed)
    lines = SMALL.split("\n")
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(lines))
        kind = chance.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[chance.randrange(len(lines))])
        elif kind == 2 and ":" in lines[at]:
            lines[at] = lines[at][: lines[at].index(":") + 1] + " " + chance.choice(WORDS)
        elif kind == 3 and lines[at]:
            where = chance.randrange(len(lines[at]))
            lines[at] = lines[at][:where] + chance.choice("abz :{}[],'\"&*!#\n-") + lines[at][where + chance.randrange(3) :]
        elif kind == 4:
            lines[at] = "  " + lines[at]
        else:
            lines[at] = lines[at].replace(chance.choice(["e", "i", " ", ","]), "", 1)
        lines = lines or [""]
    return "\n".join(lines)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(["steps=2", "policy=null", "compare.tight=null", "model={}", "a.b=1", "policy.gate.kind=x"]), max_size=2),
)
def test_a_mutated_file_loads_or_is_refused_with_problems(seed, overrides):
    try:
        scenario = read_scenario(mutated(seed), file="f.yaml", folder="/", overrides=overrides)
    except ScenarioError as error:
        scenario, found = None, list(error.problems)
    else:
        found = []
    assert (scenario is None) == bool(found)
    assert found == sorted(found)
    assert all(problem.message and problem.file for problem in found)
