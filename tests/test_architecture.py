"""Rules of the house that no single test of a room would notice."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import moesim
from moesim.base.registry import SLOTS

ROOT = Path(moesim.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
LONGEST = 410
ONE_PIECE = ("models/sharing/bottleneck_groups.py", "models/sharing/rank_chains.py")
"""Longer, as docs/design.md explains: numba rebuilds a compiled function when its own file changes, not when a file that it uses does."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
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
        "study",
        "desk",
        "lab",
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


def test_the_package_itself_gives_its_own_modules_nothing_but_the_version() -> None:
    # It re-exports from all floors, so taking a function from there would be a way around the floors that import-linter is told to ignore.
    taken = {alias.name for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "moesim"
             for alias in node.names}  # fmt: skip
    used = {node.attr for _, tree in trees() for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "moesim"}  # fmt: skip
    assert taken | used == {"__version__"}


def test_files_are_short_enough_to_read() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert tuple(path for path, lines in lengths.items() if lines > LONGEST) == ONE_PIECE


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
    replays_sglang = ("models/dispatch/static.py", "random")  # tables that SGLang draws so; the seed is a key of the scenario
    assert set(wrong) == {
        ("base/streams.py", "default_rng"),
        ("base/streams.py", "SeedSequence"),
        ("base/streams.py", "MT19937"),  # with a seed of somebody else's, and a state that is set
        replays_sglang,
    }


def called(tree: ast.Module) -> set[str]:
    """Names of built-in functions that a file calls."""
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = {name(path) for path, tree in trees() if called(tree) & {"print", "exit", "quit", "input"}}
    assert {path for path in wrong if room(path) != "cli"} == set()


LEADS_OUT = {"os", "io", "pathlib", "importlib", "pkgutil", "runpy", "shutil", "tempfile", "glob", "subprocess", "socket", "urllib", "mmap"}
LEADS_OUT |= {"gzip", "zipfile", "tarfile", "csv", "sqlite3", "fileinput", "codecs", "linecache", "ctypes"}
"""Modules that reach files, other processes, or code that nobody imported by name."""

OPENERS = {"open", "exec", "eval", "compile", "__import__"}
OF_NUMPY = {"load", "save", "savez", "savez_compressed", "savetxt", "loadtxt", "genfromtxt", "fromfile", "memmap", "open_memmap"}
OF_OBJECTS = {"read_text", "read_bytes", "write_text", "write_bytes", "tofile", "source_to_code", "get_data", "exec_module", "load_module"}


def ways_out(tree: ast.Module) -> set[str]:
    """Everything by which a file reaches the disk or runs code that it did not import: what tests cannot do without a folder."""
    found = {module.split(".", maxsplit=1)[0] for module in imported(tree)} & LEADS_OUT
    found |= called(tree) & OPENERS
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_numpy = isinstance(node.value, ast.Name) and node.value.id in {"np", "numpy"} and node.attr in OF_NUMPY
            if of_numpy or node.attr in OF_OBJECTS:
                found.add(node.attr)
    return found


def test_only_the_desk_opens_files() -> None:
    # docs/design.md names these exceptions. Commands stand above the desk: they ask for the terminal and hand paths on.
    exceptions = {
        "__init__.py": {"importlib", "os"},  # imports public names when they are used; os.PathLike in a signature
        "base/registry.py": {"importlib", "pkgutil", "os", "exec", "get_data", "source_to_code"},  # rooms, entry points, plug-in files
        "models/sharing/compiled.py": {"pathlib"},  # is compiled code on disk as old as the files that it was made from?
    }
    found = {name(path): ways for path, tree in trees() if room(name(path)) not in {"desk", "lab", "cli"} and (ways := ways_out(tree))}
    assert found == exceptions


def test_ways_out_are_seen() -> None:
    for text, way in (
        ("import importlib.util", "importlib"),
        ("def f():\n    from importlib import import_module", "importlib"),
        ("np.load('x')", "load"),
        ("numpy.fromfile('x')", "fromfile"),
        ("open('x')", "open"),
        ("path.read_text()", "read_text"),
        ("from os import path", "os"),
    ):
        assert ways_out(ast.parse(text)) == {way}
    assert ways_out(ast.parse("setting.load(np.sort(x)); model.save")) == set()


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """Names of the modules that are imported when the file is, those of a type checker apart."""
    body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return imported(ast.Module(body=list(body), type_ignores=[]))


def test_pydantic_is_the_desks_with_the_exceptions_of_the_design_page() -> None:
    users = those_that_import("pydantic") | those_that_import("pydantic_core")
    outside = {path for path in users if room(path) != "desk"}
    assert outside == {"base/fields.py", "base/registry.py", "cli/trace.py"}
    # And these three only when they answer it: importing them costs nothing.
    for path, tree in trees():
        if name(path) in outside:
            assert not any(module.startswith("pydantic") for module in imported_at_the_top(tree)), name(path)
    design = (Path(__file__).resolve().parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    for path in (*outside, "models/sharing/compiled.py", *ONE_PIECE):
        assert f"`{path}`" in design, path


def test_packages_of_slots_are_the_only_names_of_modules_that_are_text() -> None:
    # import-linter follows import statements. A module named by a string is an edge that it cannot see: the registry's, upwards, is the
    # one that the design page admits; the others go down.
    floors = ("base", "facts", "models", "measure", "engine", "testing", "desk", "cli", "__init__.py")
    pattern = rf"moesim\.({'|'.join(floors[:-1])})(\.\w+)*(:\w+)?"
    texts: dict[str, set[str]] = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(pattern, node.value):
                texts.setdefault(name(path), set()).add(node.value)
    slots = {slot.package for slot in SLOTS.values()}
    assert texts.pop("base/registry.py") == slots
    for path, named in texts.items():
        for module in named:
            assert floors.index(module.split(".")[1].split(":")[0]) <= floors.index(room(path)), (path, module)


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
