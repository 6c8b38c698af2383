"""Rules of the house that no single test of a room would notice."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moesim

ROOT = Path(moesim.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
LONGEST = 400


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def imported(tree: ast.Module) -> set[str]:
    """Names of all modules that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def those_that_import(package: str) -> set[str]:
    return {name(path) for path, tree in trees() if any(re.match(rf"{package}(\.|$)", module) for module in imported(tree))}


def room(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


def test_every_file_is_on_a_floor_or_is_the_public_checks() -> None:
    # import-linter knows the floors by name: a room that it does not list would be free to import anything.
    assert {room(name(path)) for path in FILES} <= {
        "__init__.py",
        "__main__.py",
        "base",
        "facts",
        "models",
        "measure",
        "engine",
        "desk",
        "cli",
        "testing",
    }


def test_only_the_engine_has_a_clock() -> None:
    users = those_that_import("simpy")
    assert users
    assert {room(path) for path in users} == {"engine"}


@pytest.mark.parametrize(
    ("package", "rooms"),
    [("yaml", {"desk"}), ("jinja2", {"desk"}), ("matplotlib", {"desk"}), ("click", {"cli"}), ("rich", {"cli", "desk"})],
)
def test_libraries_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    assert {room(path) for path in those_that_import(package)} <= rooms


def test_nobody_below_the_tests_imports_the_public_checks() -> None:
    assert {path for path in those_that_import(r"moesim\.testing") if room(path) != "testing"} == set()


def test_files_are_short_enough_to_read() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST} == {}


def test_random_numbers_come_from_named_streams() -> None:
    # A function of the module np.random draws from state that everything in the process shares; a generator made elsewhere than in
    # base/streams.py has a seed that nobody can name.
    wrong = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
                owner = node.value.value
                if isinstance(owner, ast.Name) and owner.id in {"np", "numpy"} and node.attr not in {"Generator", "BitGenerator"}:
                    wrong.append((name(path), node.attr))
        if any(re.match(r"(random|secrets)(\.|$)", module) for module in imported(tree)):
            wrong.append((name(path), "random"))
    assert set(wrong) == {("base/streams.py", "default_rng"), ("base/streams.py", "SeedSequence")}


def called(tree: ast.Module) -> set[str]:
    """Names of built-in functions that a file calls."""
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = {name(path) for path, tree in trees() if called(tree) & {"print", "exit", "quit", "input"}}
    assert {path for path in wrong if room(path) != "cli"} == set()


def test_only_the_desk_opens_files() -> None:
    # One exception: the compiled sharing core asks whether numba has already put it on disk.
    openers = {name(path) for path, tree in trees() if "open" in called(tree) or "pathlib.Path" in imported(tree)}
    assert {path for path in openers if room(path) not in {"desk", "cli"}} <= {"models/sharing/compiled.py"}


def test_package_has_no_assertions_and_no_pickles() -> None:
    # Assertions vanish under python -O; unpickling runs what a file says.
    for path, tree in trees():
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), name(path)
        assert not imported(tree) & {"pickle", "shelve", "marshal"}, name(path)


def loaded_by(*arguments: str) -> tuple[set[str], str]:
    """Modules that are loaded once a command has run, and what it printed."""
    code = (
        "import sys\nfrom moesim.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    text, _, modules = out.stdout.partition("LOADED ")
    return set(modules.split()), text


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help")])
def test_help_does_not_wait_for_heavy_libraries(arguments: tuple[str, ...]) -> None:
    modules, text = loaded_by(*arguments)
    assert text.strip()
    heavy = {"numpy", "scipy", "matplotlib", "networkx", "numba", "simpy", "pydantic", "jinja2", "yaml"}
    assert modules & heavy == set()
