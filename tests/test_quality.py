"""The gates that are no tests of behaviour: lint, format, types, floors. So one command covers all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
GATES = {
    "lint": ["-m", "ruff", "check", "--no-cache", "."],
    "format": ["-m", "ruff", "format", "--check", "--no-cache", "."],
    "types": ["-m", "mypy"],
    "floors": ["-c", LINT_IMPORTS],
}


@pytest.mark.parametrize("gate", GATES)
def test_gate(gate: str) -> None:
    # In the folder of the sources: there is the configuration, and `-m` and `-c` find the package there rather than an installed copy.
    done = subprocess.run([sys.executable, *GATES[gate]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_strict() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"] is True
    assert settings["packages"] == ["moesim"]


def test_the_source_package_holds_what_the_repository_shows() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    shown = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "NOTICE", ".ci"}
    shown |= {"moesim", "scenarios", "tests", "docs", "benchmarks"}
    assert all((ROOT / name).exists() for name in shown)
    assert set(settings["include"]) == shown


def test_sources_of_numbers_can_be_found_by_anybody() -> None:
    # A bare file name of a table leads nowhere: a source names the repository, the commit and the path in it.
    from moesim.models.compute.profiles import ASSUMED, PROFILES

    for profile in (*PROFILES.values(), ASSUMED):
        numbers = (*profile.compute_efficiency.values(), profile.memory_efficiency, profile.launch)
        for known in numbers:
            if known.basis != "assumed":
                assert "ai-dynamo/aiconfigurator@095f58a:" in known.source, known.source
                assert ".parquet" in known.source
