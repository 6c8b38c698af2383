"""Every policy has a section of its own that answers five questions, and says the defaults that the code has."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from moesim.base.registry import kinds
from moesim.desk.shape import field_types
from moesim.facts.scenario import Rebalance

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"gate": "gates", "capacity": "capacity", "placement": "placement", "dispatch": "dispatch", "source": "workloads"}
QUESTIONS = ("Changes", "Formula", "Defaults and source", "Holds", "Users report")
CITED = re.compile(
    r"\[[^\]]+\]\((https://|\.\./)|Nothing found|blog|The paper|Its authors|TensorRT-LLM reports|Serving engines|Training stacks"
)
SAID_ELSEWHERE = {("source", "training"): "../models/training.md", ("placement", "file"): ""}
"""Plug-ins whose keys a page of their own explains, and one whose keys are what a file holds."""


def ours(slot: str) -> dict[str, type]:
    return {kind: cls for kind, cls in kinds(slot).items() if cls.__module__.startswith("moesim.")}


def sections(page: str) -> dict[str, dict[str, str]]:
    """The answers of each section of a page, by heading and question."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", (DOCS / "policies" / f"{page}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        assert heading not in found, f"{page}: {heading} has two sections"
        found[heading] = dict(re.findall(r"^- \*\*(.+?)\.\*\* (.+?)(?=^- \*\*|\Z)", text, flags=re.MULTILINE | re.DOTALL))
    return found


@pytest.fixture(scope="module")
def default_of():
    """How the generated reference writes a default."""
    spec = importlib.util.spec_from_file_location("generate_for_policies", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module.default_of
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize("slot", PAGES)
def test_every_policy_has_a_section_and_every_section_a_policy(slot):
    assert set(sections(PAGES[slot])) == set(ours(slot))


def test_every_way_to_rebalance_has_a_section():
    choices = next(field for field in dataclasses.fields(Rebalance) if field.name == "mode")
    assert set(sections("rebalancing")) == {"sync", "async", "free"}
    assert choices.default in sections("rebalancing")


@pytest.mark.parametrize("page", [*PAGES.values(), "rebalancing"])
def test_every_section_answers_the_five_questions_in_order(page):
    for heading, answers in sections(page).items():
        assert tuple(answers) == QUESTIONS, f"{page}: {heading}"
        for question, answer in answers.items():
            assert len(answer.strip()) > 8, f"{page}: {heading} says nothing about {question!r}"
            assert answer.strip().endswith((".", ")")), f"{page}: {heading}: {question} does not end"
        assert CITED.search(answers["Users report"]), f"{page}: {heading}: who reports that? Cite it, or write 'Nothing found.'"


@pytest.mark.parametrize("slot", PAGES)
def test_the_defaults_are_those_of_the_code(slot, default_of):
    pages = sections(PAGES[slot])
    for kind, cls in ours(slot).items():
        said = pages[kind]["Defaults and source"]
        if (slot, kind) in SAID_ELSEWHERE:
            assert SAID_ELSEWHERE[slot, kind] in said
            continue
        types = field_types(cls)
        for item in dataclasses.fields(cls):
            written = default_of(item, types[item.name]).strip("`")
            wanted = f"`{item.name}`" if written in {"required", "null"} else f"`{item.name}: {written}`"
            assert wanted in said, f"{slot} {kind}: the page does not say {wanted}"
        # And no key that there is not.
        keys = set(re.findall(r"`([a-z_]+): ", said))
        assert keys <= {item.name for item in dataclasses.fields(cls)}, f"{slot} {kind}"


def test_the_defaults_of_rebalancing_are_those_of_the_code(default_of):
    said = sections("rebalancing")["sync"]["Defaults and source"]
    for item in dataclasses.fields(Rebalance):
        assert f"`{item.name}: {default_of(item, field_types(Rebalance)[item.name]).strip('`')}`" in said
