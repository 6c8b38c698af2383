"""The two commands of the README are the product and its tests: what they promise is what happens."""

from __future__ import annotations

import doctest
import re
import shlex

import pytest
from click.testing import CliRunner
from docs.pages import FENCE, OPTIONS, ROOT

from moesim.cli import COMMANDS, main

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(found["head"], found["body"]) for found in FENCE.finditer(TEXT)]
COPYABLE = [body.strip() for head, body in BLOCKS if head == "sh"]
INSTALL = "python3 -m venv .venv && .venv/bin/pip install {what} && .venv/bin/"


def test_there_are_two_commands_and_each_is_one_line():
    assert len(COPYABLE) == 2
    assert all("\n" not in command for command in COPYABLE)
    assert COPYABLE[0].startswith(INSTALL.format(what=".") + "moesim run scenarios/")
    assert COPYABLE[1] == INSTALL.format(what="'.[test]'") + "pytest -n 2"


def test_continuous_integration_runs_the_same_tests():
    assert COPYABLE[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_main_job_prints_what_the_readme_shows(tmp_path, monkeypatch):
    words = shlex.split(COPYABLE[0].rpartition(" && ")[2])
    assert words[:2] == [".venv/bin/moesim", "run"]
    scenario = str(ROOT / words[2])
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["run", scenario, *words[3:]])
    assert done.exit_code == 0, done.output
    (promised,) = (body for head, body in BLOCKS if head == "text")
    promised = re.sub(r"^$", "<BLANKLINE>", promised.strip(), flags=re.MULTILINE) + "\n"
    assert doctest.OutputChecker().check_output(promised, done.stdout, OPTIONS), done.stdout
    folder = tmp_path / re.search(r"^Results in (\S+)$", promised, re.MULTILINE)[1]
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name):
    assert f"| `moesim {name}" in TEXT


def test_the_picture_is_there():
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)[1]
    assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
