"""Fit the shipped profiles and work out the figures of the validation page.

    python docs/validation_figures.py             fit, write the profiles, validate, write figures and pictures, write the page
    python docs/validation_figures.py --no-fit    the same with the profiles as they are
    python docs/validation_figures.py nccl moe_ffn    only the tables whose names hold one of these words; the picture stays as it is

Takes some minutes: every group of every table is held back once. ``docs/validation_page.py`` turns the figures into the page.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.desk.presets import profiles as presets
from moesim.desk.profile_files import parse_profile, profile_text, write_profile
from moesim.desk.validation_files import read_folder
from moesim.study.calibrate import calibrate, joined, with_carried
from moesim.study.hold_back import validate_held_back
from moesim.study.measured import kind_of, owner_of
from moesim.study.scores import summary_of
from moesim.study.validate import validate
from moesim.study.validation import table_kinds

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "tests" / "data" / "measured"
FIGURES = ROOT / "tests" / "data" / "validation_figures.json"
PROFILES = Path(presets.__file__).parent
PICTURE = ROOT / "docs" / "images" / "validation.png"
MADE = "2026-11"
ROWS = 100
"""Of each table that the tests predict again, at most; see :func:`thinned`."""

POINTS = 400
"""Of one table in the picture, at most; evenly spaced rows are taken."""


def fitted_profiles(tables, kept):
    """Return the shipped profiles as the tables give them, rounded as their files round, with what is ``kept`` of others."""
    found = calibrate(tables, made=MADE, check=False, progress=lambda name: print(f"fitting {name}", file=sys.stderr))
    measured = {
        name: replace(profile, note="", sections={key: section for key, section in profile.sections.items() if not section.carried_from})
        for name, profile in kept.items()
    }
    own = joined({name: profile for name, profile in measured.items() if profile.sections}, found.profiles)
    return {name: parse_profile(profile_text(profile), name) for name, profile in with_carried(own).items()}


def chosen(tables, words):
    """Return the tables whose names hold one of the words, with what may lie beside them."""
    found = [table for table in tables if kind_of(table.name) is not None and any(word in table.name for word in words)]
    return found + [table for table in tables if kind_of(table.name) is None and owner_of(table.name, found, table_kinds())]


def updated(old, new):
    """Return rows of figures with those of the tables in ``new`` replaced, in the order of the names of tables."""
    named = {item["table"] for item in new}
    return sorted([item for item in old if item["table"] not in named] + new, key=lambda item: item["table"])


def thinned(tables):
    """Return tables of at most about ``ROWS`` rows, evenly spaced: what tests predict again in seconds. Archives and documents stay."""
    found = []
    for table in tables:
        step = -(-len(table.lines) // ROWS)
        beside = "expert_counts" in table.name or table.name.startswith("routing_deepseek")
        rows = {name: column[::step] for name, column in table.rows.items()}
        found.append(table if step == 1 or beside else replace(table, rows=rows, lines=table.lines[::step]))
    return found


def rounded(value):
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def of_errors(errors):
    return {"n": errors.n, **{name: rounded(getattr(errors, name)) for name in ("mape", "median_ape", "p90_ape", "bias", "worst")}}


def of_score(score):
    found = {
        "table": score.table, "regime": score.regime, "unit": "thousandths" if score.quantity == "fraction" else "per cent",
        **of_errors(score.errors), "baseline": score.baseline, "baseline_mape": rounded(score.baseline_errors.mape),
        "coverage": rounded(score.covered), "coverage_rows": score.with_interval, "outside": score.outside,
        "basis": dict(sorted(score.bases.items())),
        "unpredicted": [{"rows": item.rows, "reason": item.reason} for item in score.unpredicted],
    }  # fmt: skip
    if score.order is not None:
        found |= {"rank_correlation": rounded(score.order.correlation), "pairs": score.order.pairs, "wrong": score.order.wrong}
    if score.ratios is not None:
        found |= {"ratio": of_errors(score.ratios.errors), "ratio_baseline": score.ratios.baseline,
                  "ratio_baseline_mape": rounded(score.ratios.baseline_errors.mape), "told": score.ratios.told,
                  "wrong_sign": score.ratios.wrong_sign}  # fmt: skip
        if score.ratios.told_beyond is not None:
            found |= {"told_beyond": score.ratios.told_beyond, "wrong_beyond": score.ratios.wrong_beyond}
    return found


def of_groups(validation):
    """Return the signed errors of every group that was held back."""
    rows = []
    for cases in validation.cases:
        for label in np.unique(cases.group):
            mask = cases.group == label
            errors = summary_of(cases.errors[mask])
            rows.append(
                {"table": cases.table, "group": str(label), "n": errors.n, "mape": rounded(errors.mape), "bias": rounded(errors.bias)}
            )
    return rows


def ranges(profiles):
    return [
        {"profile": name, "section": key, "model": section.model, "rows": section.rows, "carried_from": section.carried_from,
         "range": {column: [rounded(least), rounded(most)] for column, (least, most) in section.fitted_range.items()}}
        for name, profile in profiles.items() for key, section in profile.sections.items()
    ]  # fmt: skip


def draw(shipped, held):
    """Draw predicted over measured against measured, one panel a table: rows that were held back over rows that were fitted."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = [(cases, next(other for other in held.cases if other.table == cases.table)) for cases in shipped.cases
             if cases.quantity == "time" and np.isfinite(cases.errors).any()]  # fmt: skip
    columns = 3
    lines = -(-len(parts) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(12, 2.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(parts) :]:
        axis.set_visible(False)
    for axis, (fitted, back) in zip(axes.flat, parts, strict=False):
        for cases, colour, label in ((fitted, "#9aa5b1", "fitted to all rows"), (back, "#c0392b", "its group held back")):
            known = np.flatnonzero(np.isfinite(cases.errors))
            some = known[np.linspace(0, len(known) - 1, min(POINTS, len(known))).astype(int)]
            axis.plot(cases.measured[some], cases.prediction.values[some], ".", color=colour, markersize=3, label=label)
        ends = np.array([fitted.measured.min(), fitted.measured.max()])
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log")
        axis.set_title(fitted.table, fontsize=9)
        axis.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("measured (s)", fontsize=9)
    figure.supylabel("predicted (s)", fontsize=9)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    tables, _ = read_folder(MEASURED)
    some = chosen(tables, words) if words else tables
    if "--no-fit" not in sys.argv[1:]:
        profiles = fitted_profiles(some, presets.shipped_profiles() if words else {})
        for name, profile in profiles.items():
            write_profile(PROFILES / f"{name}.yaml", profile)
    presets.profile_presets.cache_clear()
    presets.profile_preset.cache_clear()
    profiles = presets.shipped_profiles()
    shipped = validate(some, profiles)
    held = validate_held_back(some, profiles, progress=lambda name: print(f"holding back {name}", file=sys.stderr))
    old = json.loads(FIGURES.read_text(encoding="utf-8")) if words else {}
    new = {
        "sampled": [of_score(score) for score in validate(thinned(some), profiles).scores],
        "shipped": [of_score(score) for score in shipped.scores],
        "held_back": [of_score(score) for score in held.scores],
        "groups": of_groups(held),
    }
    figures = {name: updated(old.get(name, []), rows) for name, rows in new.items()} | {"ranges": ranges(profiles)}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not words:
        draw(shipped, held)
    import validation_page

    validation_page.write()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
