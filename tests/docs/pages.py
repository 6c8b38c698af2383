"""The pages of the documentation as tests: every block that a reader may try is tried, in order, in a folder of the page's own.

- A ``console`` block: lines that start with ``$`` are commands, what follows is their output (``...`` stands for anything): of a command
  that fails what it says on stderr too. A command must succeed, unless ``$ echo $?`` comes next and says otherwise.
- A ``python`` block runs; all of a page share their names.
- A ``code-block`` with a ``:caption:`` is a file of that name.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.region import Lexeme

from moesim.base.registry import SLOTS, kinds
from moesim.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(?P<head>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
CAPTION = re.compile(r"\A:caption: (?P<name>\S+)\n\n?")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def blocks(document: Document) -> Iterator[Region]:
    """What can be tried; a block of any other kind is text."""
    for found in FENCE.finditer(document.text):
        head, body = found["head"], found["body"]
        caption = CAPTION.match(body) if head.startswith("{code-block}") else None
        if head == "console":
            yield Region(found.start(), found.end(), body, run_console)
        elif head == "python":
            yield Region(found.start(), found.end(), Lexeme(body, 0, 0), PythonEvaluator())
        elif caption:
            yield Region(found.start(), found.end(), (caption["name"], body[caption.end() :]), write_file)


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


@contextmanager
def plugins_as_before() -> Iterator[None]:
    """Forget what is registered meanwhile."""
    known = {name: kinds(name) for name in SLOTS}
    try:
        yield
    finally:
        for name, slot in SLOTS.items():
            slot.known.clear()
            slot.known.update(known[name])


@contextmanager
def a_process_of_its_own() -> Iterator[None]:
    """Start with the built-in plug-ins alone, as a command in a reader's shell does."""
    with plugins_as_before():
        for slot in SLOTS.values():
            for kind, cls in list(slot.known.items()):
                if not cls.__module__.startswith("moesim."):
                    del slot.known[kind]
        yield


def run(command: str) -> tuple[str, int]:
    """Output and exit code; moesim runs in this process, everything else in a shell that finds this Python first."""
    if re.match(r"moesim [^|>;&]*$", command):
        with a_process_of_its_own():
            done = CliRunner().invoke(main, shlex.split(command)[1:])
        return done.output if done.exit_code else done.stdout, done.exit_code
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ | {"PATH": path, "PYTHONUTF8": "1"}
    )
    return shell.stdout + shell.stderr * bool(shell.returncode), shell.returncode


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
    return list(Sybil(parsers=[blocks], path=str(page.parent), patterns=[page.name]).parse(page).examples())
