"""The JSON Schema agrees with the loader."""

import json

import pytest
from jsonschema import Draft202012Validator
from scenario_texts import SMALL

from moesim.base.registry import SLOTS, kinds
from moesim.desk.scenario_file import read_scenario
from moesim.desk.scenario_text import dump
from moesim.desk.schema import scenario_schema
from moesim.desk.starter import starter_text, starters
from moesim.desk.yaml_tree import parse_yaml


@pytest.fixture(scope="module")
def validator():
    schema = scenario_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(json.loads(json.dumps(schema)))


def data(text):
    return parse_yaml(text, "f")[0].data()


def test_good_scenarios_are_valid(validator):
    texts = [SMALL, *(starter_text(name) for name in starters())]
    resolved = [dump(read_scenario(text, file="f", folder="/")) for text in texts]
    for text in [*texts, *resolved, SMALL + "  word: {placement: round_robin}\n  nothing:\n  other: {capacity: {rule: deepspeed}}\n"]:
        validator.validate(data(text))
    validator.validate(data(SMALL[: SMALL.index("model:")] + "model: {config: c.json, top_k: 3}\n" + SMALL[SMALL.index("cluster:") :]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 1", "sead: 1"),
        ("name: small\n", ""),
        ("steps: 3", "steps: 2.5"),
        ("steps: 3", "steps: 0"),
        ("  top_k: 2\n", ""),
        ("kind: nvlink_nodes", "kind: nvlink_node"),
        ("nodes: 2", "nods: 2"),
        ("nic: 400 Gb/s", "nic: [1]"),
        ("phase: training", "phase: trainin"),
        ("rule: megatron, factor", "rule: megatron, fator"),
        ("{rule: megatron, factor: 1.25}", "{factor: 1.25}"),
        ("tight: {capacity: {factor: 1.0}}", "tight: {capacity: {fator: 1.0}}"),
        ("tight: {capacity: {factor: 1.0}}", "tight: {capcity: null}"),
        ("gpu: h100-sxm", "gpu: h100"),
        ("sigma: 1e-1", "sigma: -1"),
        ("model:\n", "model:\n  preset: olmoe-1b-7b\n  config: c.json\n"),
    ],
)
def test_bad_scenarios_are_not(validator, old, new):
    assert old in SMALL
    assert not validator.is_valid(data(SMALL.replace(old, new, 1)))


def test_every_plugin_of_the_file_is_in_it_with_what_its_docstring_says():
    schema = scenario_schema()
    for slot in SLOTS.values():
        if slot.name == "metric":
            continue
        for kind, cls in kinds(slot.name).items():
            form = schema["$defs"][f"{slot.name}-{kind}"]
            assert form["properties"][slot.tag] == {"const": kind}
            # Plug-ins of other tests may have no docstring.
            assert form.get("description") or not cls.__module__.startswith("moesim.")
    factor = schema["$defs"]["capacity-megatron"]["properties"]["factor"]
    assert factor == {"type": "number", "exclusiveMinimum": 0.0, "description": "moe_expert_capacity_factor."}


def test_every_reference_leads_somewhere():
    schema = scenario_schema()
    references = []

    def walk(part):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if key == "$ref":
                references.append(value)
            elif isinstance(value, (dict, list)):
                walk(value)

    walk(schema)
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(schema["$defs"])
