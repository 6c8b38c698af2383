"""What the page of a comparison is drawn from: made of a finished comparison, or read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.base.errors import ResultError
from moesim.desk import folder as places
from moesim.desk.cell_files import file_of, read_answer
from moesim.desk.compare_words import evidence
from moesim.desk.comparing import Outcome
from moesim.desk.scenario_text import digest, dump
from moesim.desk.study_folder import CELLS
from moesim.desk.summary import SCHEMA
from moesim.facts.record import Value
from moesim.study.cell import Answer
from moesim.study.compare import Comparison, Difference, Winner

JSON = "comparison.json"
AGAIN = "run `moesim compare` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One variant.

    Parameters
    ----------
    answers : tuple of Answer
        Of all its runs; the first has the tables of the figures.
    seeds : tuple of int
        Of the runs.
    source : str
        The kind of its routing.
    text, digest : str
        Its scenario, and the digest of what that means.
    gpu_memory : float
        B of its GPU.
    """

    answers: tuple[Answer, ...]
    seeds: tuple[int, ...]
    source: str
    text: str
    digest: str
    gpu_memory: float

    @property
    def first(self) -> Answer:
        """Of the first run."""
        return self.answers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A comparison as its page shows it; variants that failed are left out."""

    name: str
    by: str
    evidence: str
    version: str
    comparison: Comparison
    warnings: tuple[str, ...]
    sides: Mapping[str, Side]


def shown_of(outcome: Outcome, *, version: str, texts: Mapping[str, str] | None = None) -> Shown:
    """Return what is shown of a finished comparison.

    Parameters
    ----------
    outcome : Outcome
    version : str
        Of moesim.
    texts : mapping of str to str, optional
        The scenario of each variant as it was written; with absolute paths if left out.
    """
    sides = {}
    for name, played in outcome.played.items():
        scenario = outcome.scenario(name)
        sides[name] = Side(
            answers=played.answers,
            seeds=played.seeds,
            source=scenario.routing.kind,
            text=dump(scenario) if texts is None else texts[name],
            digest=digest(scenario),
            gpu_memory=float(scenario.cluster.build().gpu.memory),
        )
    return Shown(
        name=outcome.question.name,
        by=outcome.question.by,
        evidence=evidence(outcome),
        version=version,
        comparison=outcome.comparison,
        warnings=outcome.warnings,
        sides=sides,
    )


def read_shown(folder: str | Path) -> Shown:
    """Return what is shown of the comparison in a folder, from its files alone.

    Parameters
    ----------
    folder : path
        What ``moesim compare`` wrote.

    Raises
    ------
    ResultError
        If a file is missing, damaged, or of another schema; the message names it.
    """
    folder = Path(folder)
    path = folder / JSON
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise ResultError(f"{path} is damaged: {error}; {AGAIN}") from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise ResultError(f"{path} has schema {found!r}, this moesim reads schema {SCHEMA}; {AGAIN}")
    if "evidence" not in content:
        raise ResultError(f"{path} was written by a moesim whose comparisons did not keep their runs; {AGAIN}")
    try:
        return Shown(
            name=str(content["name"]),
            by=str(content["winner"]["by"]),
            evidence=str(content["evidence"]),
            version=str(content["version"]),
            comparison=_comparison(content),
            warnings=tuple(content["warnings"]),
            sides={name: _side(folder, name, one) for name, one in content["variants"].items()},
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ResultError(f"{path} is damaged: {type(error).__name__}: {error}; {AGAIN}") from None


def _side(folder: Path, name: str, one: Mapping[str, Any]) -> Side:
    paths = [file_of(folder / CELLS, digest) for digest in one["cells"]]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        raise ResultError(f"not all runs of {name} are in {folder}: {gone[0].name} is not in {CELLS}; {AGAIN}")
    return Side(
        answers=tuple(read_answer(path) for path in paths),
        seeds=tuple(one["evidence"]["seeds"]),
        source=str(one["source"]),
        text=_read(folder / one["scenario"]).decode(errors="replace"),
        digest=str(one["scenario_digest"]),
        gpu_memory=float(one["gpu_memory"]),
    )


def _comparison(content: Mapping[str, Any]) -> Comparison:
    winner = {**content["winner"], "tied": tuple(content["winner"]["tied"])}
    variants = content["variants"]
    return Comparison(
        baseline=str(content["baseline"]),
        metrics={name: {key: Value(**value) for key, value in one["metrics"].items()} for name, one in variants.items()},
        differences={name: {key: Difference(**one) for key, one in of.items()} for name, of in content["differences"].items()},
        winner=Winner(**winner),
        same_choices={name: bool(one["same_choices"]) for name, one in variants.items()},
        warnings=(),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultError(f"cannot read {path}: {places.reason(error)}") from None
