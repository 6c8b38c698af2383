"""The answer of ``moesim validate`` for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moesim.desk.network_text import aligned
from moesim.study.validate import Score, Validation

HEADS = ("table", "regime", "rows", "mean", "median", "p90", "bias", "baseline", "its mean", "in 90 %", "outside", "carried")


def text(validation: Validation) -> str:
    """Return a table of errors, then order and ratios, then everything that was not predicted, with its reason."""
    scored = [score for score in validation.scores if score.errors.n]
    lines: list[str] = []
    for quantity, title in (
        ("time", "Errors in per cent of the measured time"),
        ("count", "Errors in per cent of the count"),
        ("fraction", "Absolute errors, in thousandths"),
    ):
        part = [score for score in scored if score.quantity == quantity]
        if part:
            lines += [title, *aligned([HEADS, *map(_cells, part)], left={0, 1, 7}, indent="  "), ""]
    lines += _orders(scored)
    lines += _ratios(scored)
    left = [(score, item) for score in validation.scores for item in score.unpredicted]
    if left:
        lines.append("Not predicted")
        for score, item in left:
            place = f"{score.file}{f' ({score.regime})' if score.regime else ''}"
            rows = "the whole file" if not item.rows else f"{item.rows} row{'s' * (item.rows != 1)}"
            lines.append(f"  {place}: {rows}: {item.reason}")
        lines.append("")
    if validation.others:
        lines += ["Other files", *(f"  {other.file}: {other.reason}" for other in validation.others), ""]
    total = sum(score.errors.n for score in scored)
    missing = sum(item.rows for score in validation.scores for item in score.unpredicted)
    files = len({score.file for score in scored})
    lines.append(f"{total} rows of {files} table{'s' * (files != 1)} predicted, {missing} not.")
    return "\n".join(lines) + "\n"


def _cells(score: Score) -> list[str]:
    errors = score.errors
    return [
        score.table,
        score.regime or "-",
        str(errors.n),
        number(errors.mape),
        number(errors.median_ape),
        number(errors.p90_ape),
        number(errors.bias, signed=True),
        score.baseline or "-",
        number(score.baseline_errors.mape),
        "-" if math.isnan(score.covered) else f"{100 * score.covered:.0f} %",
        str(score.outside or "-"),
        str(score.bases.get("datasheet", 0) or "-"),
    ]


def number(value: float, *, signed: bool = False) -> str:
    """Return an error with one decimal, or a dash where there is none."""
    return "-" if not math.isfinite(value) else f"{value:+.1f}" if signed else f"{value:.1f}"


def _orders(scores: Sequence[Score]) -> list[str]:
    rows = [
        [score.table, score.regime or "-", str(score.order.experiments), _share(score.order.correlation, 2), str(score.order.pairs),
         "-" if not score.order.pairs else f"{100 * score.order.wrong_rate:.1f} %"]
        for score in scores if score.order is not None and score.order.experiments
    ]  # fmt: skip
    if not rows:
        return []
    heads = ["table", "regime", "experiments", "rank correlation", "pairs told apart", "wrong winners"]
    return ["Order of rivals", *aligned([heads, *rows], left={0, 1}, indent="  "), ""]


def _ratios(scores: Sequence[Score]) -> list[str]:
    rows = [
        [score.table, score.regime or "-", str(score.ratios.errors.n), number(score.ratios.errors.mape),
         number(score.ratios.errors.bias, signed=True), score.ratios.baseline or "-", number(score.ratios.baseline_errors.mape),
         f"{score.ratios.wrong_sign} of {score.ratios.told}",
         "-" if score.ratios.told_beyond is None else f"{score.ratios.wrong_beyond} of {score.ratios.told_beyond}"]
        for score in scores if score.ratios is not None and score.ratios.errors.n
    ]  # fmt: skip
    if not rows:
        return []
    heads = ["table", "regime", "rows", "mean", "bias", "baseline", "its mean", "wrong side of 1", "beyond chance"]
    return ["Errors of ratios to the reference, in per cent", *aligned([heads, *rows], left={0, 1, 5}, indent="  "), ""]


def _share(value: float, digits: int) -> str:
    return "-" if not math.isfinite(value) else f"{value:.{digits}f}"
