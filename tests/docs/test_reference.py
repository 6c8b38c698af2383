"""The generated pages are what the code says now, and the pages written by hand name things that exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from docs.pages import DOCS, ROOT


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("moesim_docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generate):
    assert generate.stale() == [], "run: python docs/generate.py"


def test_a_page_that_differs_is_found(generate, tmp_path):
    for name, make in generate.PAGES.items():
        (tmp_path / name).write_text(make(), encoding="utf-8")
    assert generate.stale(tmp_path) == []
    page = tmp_path / "metrics.md"
    page.write_text(page.read_text(encoding="utf-8").replace("step_time", "stop_time", 1), encoding="utf-8")
    (tmp_path / "presets.md").unlink()
    assert generate.stale(tmp_path) == ["metrics.md", "presets.md"]


def test_tests_that_pages_name_exist():
    # A law without its test would be a promise only.
    for page in DOCS.rglob("*.md"):
        for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
            assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: {path}::{test}"


def test_every_law_has_its_page_and_every_law_test_is_named_on_it():
    text = (DOCS / "laws.md").read_text(encoding="utf-8")
    assert re.findall(r"^## L(\d+) ", text, re.MULTILINE) == [str(number) for number in range(1, 17)]
    unnamed = [
        f"{path.relative_to(ROOT)}::{test}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for test in re.findall(r"^def (test_l\d+_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if f"{path.relative_to(ROOT).as_posix()}::{test}`" not in text
    ]
    assert unnamed == [], "name these tests in docs/laws.md"


def test_the_manual_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
        str(DOCS),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()
