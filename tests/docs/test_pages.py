"""Every page: what it shows runs as shown, and what it names is there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from docs.pages import DOCS, FENCE, ROOT, examples, pages, plugins_as_before

PAGES = pages()


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the scenarios in it; plug-ins that a page registers are forgotten afterwards."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    with plugins_as_before():
        yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("moesim_plugin_") or str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


WITH_EXAMPLES = [page for page in PAGES if examples(page)]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=short)
def test_what_a_page_shows_runs_as_shown(page, folder):
    for example in examples(page):
        example.evaluate()


def test_the_pages_that_teach_have_examples():
    taught = {short(page) for page in WITH_EXAMPLES}
    wanted = {"docs/tutorial.md", "docs/reference/python.md", *(short(page) for page in (DOCS / "howto").glob("*.md"))}
    assert wanted - {"docs/howto/index.md"} <= taught


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_block_says_what_it_is(page):
    # A block that is neither run nor plain text would be a promise that nobody checks.
    text = page.read_text(encoding="utf-8")
    heads = {found["head"] for found in FENCE.finditer(text)}
    directives = {"{toctree}", *(f"{{code-block}} {language}" for language in ("yaml", "json", "python", "text"))}
    shells = {"sh"} if page.name in {"README.md", "CONTRIBUTING.md"} else set()
    assert heads <= {"console", "python", "text", "yaml", "math", *directives, *shells}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=short)
def test_links_of_pages_outside_the_manual_lead_somewhere(page):
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (ROOT / target.partition("#")[0]).exists(), target
