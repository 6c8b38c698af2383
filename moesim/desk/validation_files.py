"""The answer of ``moesim validate`` as JSON, CSV and a folder; its keys are a contract: add to them, do not rename."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import moesim
from moesim.base.errors import CalibrationError, UsageError
from moesim.desk.folder import make, put
from moesim.desk.measured_tables import SUFFIXES, MeasuredTable, files_below, read_measured
from moesim.desk.presets.profiles import profile_preset, shipped_profiles
from moesim.desk.profile_files import read_profile
from moesim.desk.shape import is_name
from moesim.desk.summary import to_json
from moesim.desk.tables import to_csv
from moesim.facts.profile import Profile
from moesim.facts.record import Table
from moesim.study.scores import Errors
from moesim.study.validate import Cases, Score, Validation

NAMES = frozenset({"validation.json", "scores.csv", "cases.csv"})
"""What ``-o`` writes."""


def read_folder(folder: Path) -> tuple[list[MeasuredTable], list[tuple[str, str]]]:
    """Read every file below a folder.

    Returns
    -------
    tables : list of MeasuredTable
        Those that are tables, by name.
    unreadable : list of (str, str)
        The others, each with the reason.

    Raises
    ------
    CalibrationError
        If the folder cannot be read or holds no file.
    """
    tables, unreadable = [], []
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix not in SUFFIXES:
            unreadable.append((name, f"no table: tables end in {', '.join(SUFFIXES)}"))
            continue
        try:
            tables.append(read_measured(path, name))
        except CalibrationError as error:
            unreadable.append((name, str(error)))
    return tables, unreadable


def profiles_for(named: Sequence[str]) -> dict[str, Profile]:
    """Return the shipped profiles after those that the user names, by a name or a file.

    What a user's profile says of a GPU holds in place of what a shipped one says: those sections are taken out of the shipped one.

    Raises
    ------
    CalibrationError, PluginError
        If one cannot be read.
    UsageError
        If two files hold profiles of one name.
    """
    own: dict[str, Profile] = {}
    places: dict[str, str] = {}
    for item in named:
        profile = profile_preset(item) if is_name(item) else read_profile(Path(item))
        if profile.name in own:
            raise UsageError(f"{places[profile.name]} and {item} both hold a profile named {profile.name!r}; rename one")
        own[profile.name], places[profile.name] = profile, item
    found = dict(own)
    for name, shipped in shipped_profiles().items():
        taken = {section for profile in own.values() if profile.gpu == shipped.gpu for section in profile.sections}
        left = {key: section for key, section in shipped.sections.items() if key not in taken}
        found[f"{name} (shipped)" if name in own else name] = replace(shipped, sections=left)
    return found


def answer(validation: Validation) -> dict[str, Any]:
    """Return the content of ``validation.json`` and of ``--format json``."""
    return {
        "schema": 1,
        "version": moesim.__version__,
        "tables": [_score(score) for score in validation.scores],
        "other_files": [{"file": other.file, "reason": other.reason} for other in validation.others],
        "warnings": list(validation.warnings),
    }


def _score(score: Score) -> dict[str, Any]:
    found: dict[str, Any] = {
        "table": score.table,
        "regime": score.regime,
        "n": score.errors.n,
        "mape": score.errors.mape,
        "median_ape": score.errors.median_ape,
        "p90_ape": score.errors.p90_ape,
        "bias": score.errors.bias,
        "baseline": score.baseline,
        "baseline_mape": score.baseline_errors.mape,
        "unpredicted": [{"rows": item.rows, "reason": item.reason} for item in score.unpredicted],
        "file": score.file,
        "unit": "thousandths" if score.quantity == "fraction" else "per cent",
        "worst": score.errors.worst,
        "coverage": score.covered,
        "coverage_rows": score.with_interval,
        "outside_fitted_range": score.outside,
        "basis": dict(score.bases),
    }
    if score.order is not None:
        found["rank_correlation"] = score.order.correlation
        found["wrong_winner_rate"] = score.order.wrong_rate
        found["wrong_winner_pairs"] = score.order.pairs
    if score.ratios is not None:
        found["ratio"] = {
            **_errors(score.ratios.errors),
            "baseline": score.ratios.baseline,
            "baseline_mape": score.ratios.baseline_errors.mape,
            "told_apart": score.ratios.told,
            "wrong_sign": score.ratios.wrong_sign,
            "told_apart_beyond_chance": score.ratios.told_beyond,
            "wrong_sign_beyond_chance": score.ratios.wrong_beyond,
        }
    return found


def _errors(errors: Errors) -> dict[str, Any]:
    return {"n": errors.n, "mape": errors.mape, "median_ape": errors.median_ape, "p90_ape": errors.p90_ape, "bias": errors.bias}


FLAT = (
    "table", "regime", "n", "mape", "median_ape", "p90_ape", "bias", "worst", "baseline", "baseline_mape", "unpredicted", "coverage",
    "outside_fitted_range", "unit", "rank_correlation", "wrong_winner_rate", "ratio_mape", "ratio_bias", "ratio_baseline_mape",
)  # fmt: skip
"""Columns of ``scores.csv``."""


def scores_csv(validation: Validation) -> str:
    """Return one line per table and regime; a cell is ``nan`` where there is no number."""
    rows = []
    for score in validation.scores:
        item = _score(score)
        ratio = item.get("ratio", {})
        item |= {
            "unpredicted": sum(part["rows"] for part in item["unpredicted"]),
            "ratio_mape": ratio.get("mape"),
            "ratio_bias": ratio.get("bias"),
            "ratio_baseline_mape": ratio.get("baseline_mape"),
        }
        rows.append([item.get(name) for name in FLAT])
    return to_csv(Table(columns={name: _column([row[at] for row in rows]) for at, name in enumerate(FLAT)}))


def _column(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    if any(isinstance(value, str) for value in values):
        return np.asarray([value or "" for value in values], dtype=np.str_)
    if values and all(isinstance(value, int) for value in values):
        return np.asarray(values, dtype=np.int64)
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def cases_csv(cases: Iterable[Cases]) -> str:
    """Return one line per row of every table: measured, predicted, its interval, its signed error, and flags."""
    columns: dict[str, list[Any]] = {}
    for part in cases:
        guess = part.prediction
        size = len(part.measured)
        made: Mapping[str, Sequence[Any]] = {
            "table": [part.table] * size,
            "line": part.lines.tolist(),
            "regime": part.regime.tolist(),
            "group": part.group.tolist(),
            "measured": part.measured.tolist(),
            "predicted": guess.values.tolist(),
            "low": guess.low.tolist(),
            "high": guess.high.tolist(),
            "error": part.errors.tolist(),
            "baseline": part.baseline_values.tolist(),
            "outside_fitted_range": [bool(item) for item in guess.outside],
            "basis": [str(item) for item in guess.basis],
            "reason": [str(item) for item in guess.reasons],
        }
        for name, values in made.items():
            columns.setdefault(name, []).extend(values)
    return to_csv(Table(columns={name: np.asarray(values) for name, values in columns.items()})) if columns else "table\n"


def write_folder(folder: Path, validation: Validation) -> None:
    """Write the answer, the scores and every case into a folder.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    make(folder)
    put(folder / "cases.csv", cases_csv(validation.cases).encode())
    put(folder / "scores.csv", scores_csv(validation).encode())
    put(folder / "validation.json", to_json(answer(validation)).encode())
