"""The pages of the documentation as tests: every block that a reader may try is tried, in order, in a folder of the page's own.

- A ``console`` block: lines that start with ``$`` are commands, what follows is their output (``...`` stands for anything). A command must
  succeed, unless ``$ echo $?`` comes next and says otherwise.
- A ``python`` block runs; all of a page share their names.
- A ``code-block`` with a ``:caption:`` is a file of that name.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import PythonCodeBlockParser

from moesim.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(?P<head>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
CAPTION = re.compile(r"\A:caption: (?P<name>\S+)\n\n?")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def console_blocks(document: Document) -> Iterator[Region]:
    for found in FENCE.finditer(document.text):
        if found["head"] == "console":
            yield Region(found.start(), found.end(), found["body"], run_console)


def file_blocks(document: Document) -> Iterator[Region]:
    for found in FENCE.finditer(document.text):
        if found["head"].startswith("{code-block}"):
            caption = CAPTION.match(found["body"])
            if caption:
                yield Region(found.start(), found.end(), (caption["name"], found["body"][caption.end() :]), write_file)


def write_file(example: Example) -> None:
    name, text = example.parsed
    Path(name).write_text(text, encoding="utf-8")


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output it promises."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), []))
        else:
            assert found, f"a console block starts with a command, not with {line!r}"
            found[-1][1].append(line)
    return [(command, "".join(output)) for command, output in found]


def run(command: str) -> tuple[str, int]:
    """Output and exit code; moesim runs in this process, everything else in a shell that finds this Python first."""
    if re.match(r"moesim [^|>;&]*$", command):
        import shlex

        done = CliRunner().invoke(main, shlex.split(command)[1:])
        return done.output, done.exit_code
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ | {"PATH": path, "PYTHONUTF8": "1"}
    )
    return shell.stdout + shell.stderr, shell.returncode


def run_console(example: Example) -> str | None:
    listed = commands(example.parsed)
    problems = []
    last = 0
    for number, (command, promised) in enumerate(listed):
        if command == "echo $?":
            output = f"{last}\n"
        else:
            output, last = run(command)
            excused = number + 1 < len(listed) and listed[number + 1][0] == "echo $?"
            if last and not excused:
                problems.append(f"$ {command}\nexit code {last}:\n{output}")
        if promised and not doctest.OutputChecker().check_output(promised, output, OPTIONS):
            problems.append(f"$ {command}\n--- promised\n{promised}--- printed\n{output}")
    return "\n".join(problems) or None


def examples(page: Path) -> list[Any]:
    """Everything to try on a page, in order."""
    reader = Sybil(parsers=[console_blocks, file_blocks, PythonCodeBlockParser()], path=str(page.parent), patterns=[page.name])
    return list(reader.parse(page).examples())
