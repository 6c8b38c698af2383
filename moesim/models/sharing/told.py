"""How exactly links were shared, in words: one line for screens and pages, sentences for assumptions and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.models.sharing.modes import BOUND, EXACT


def told(report: Mapping[str, Any]) -> str:
    """Return one line about a run.

    Parameters
    ----------
    report : mapping
        As :meth:`moesim.engine.fabric.Fabric.report` returns it.

    Examples
    --------
    >>> told({"mode": "exact", "busy_periods": {"exact": 3}})
    'links shared exactly'
    """
    mode = str(report.get("mode", EXACT))
    if mode == EXACT or (mode != BOUND and not report.get("compiled", True)):
        line = "links shared exactly"
    elif mode == BOUND:
        line = "links only bounded: each works off its bytes as if nothing else held them up, which predicts no rank's time"
    else:
        guard = f", cut where a flow would speed up {report['guard']:g}-fold" if report.get("guard") else ""
        length = f"{_share(report['quantum'])} of the time to go"
        line = f"links shared in quanta ({mode}, {length}{guard}); {_errors(report.get('error_bound') or {})}"
    others = {name: count for name, count in (report.get("busy_periods") or {}).items() if name != mode and count}
    if others:
        line += "; " + " and ".join(f"{count} busy period{'s' * (count != 1)} {name}" for name, count in others.items())
    return line + _measured(report.get("verified"))


def assumption(report: Mapping[str, Any]) -> str:
    """Return what a reader has to assume of the way in which links were shared, as a sentence."""
    line = told(report)
    return f"{line[0].upper()}{line[1:]}."


def without_compiler(report: Mapping[str, Any]) -> str:
    """Return a warning if no compiled code could be used, or an empty text; the factors were measured for random all-to-alls."""
    if report.get("compiled", True) or report.get("mode") == BOUND:
        return ""
    return (
        "numba cannot be used here, so links are shared by plain NumPy code: the same times, but about "
        f"{SLOWER[0]} times slower to find for an all-to-all of 16 GPUs and {SLOWER[1]} times for one of 32; install numba"
    )


def beyond_bound(report: Mapping[str, Any]) -> str:
    """Return a warning if errors that were measured are larger than those stated for the mode, or an empty text."""
    bound, verified = report.get("error_bound") or {}, report.get("verified") or {}
    words = {
        "makespan": "of an all-to-all",
        "rank_mean": "of the mean rank",
        "rank_worst": "of the worst rank",
        "rank_of_whole": "of any rank's end in the whole",
    }
    over = [
        f"{_share(verified[name])} {what} (stated: {_share(bound[name])})"
        for name, what in words.items()
        if verified.get(name) is not None and bound.get(name) is not None and verified[name] > bound[name]
    ]
    if not over:
        return ""
    return (
        f"mode {report['mode']} was off by more than it states for this traffic: {', '.join(over)}; "
        "write sharing.mode: exact, or a shorter sharing.quantum"
    )


SLOWER = (26, 56)
"""Time of the plain core over that of the compiled one, all-to-alls of 16 and 32 GPUs with a different size for each pair."""


def _errors(bound: Mapping[str, Any]) -> str:
    if bound.get("makespan") is None:
        return "nobody has measured the errors of these numbers"
    if bound.get("rank_worst") is None:
        whole = bound.get("rank_of_whole")
        of_ranks = "" if whole is None else f"; of any rank's end, {_share(whole)} of it"
        return f"errors stated for it: {_share(bound['makespan'])} of an all-to-all{of_ranks}"
    return (
        f"errors stated for it: {_share(bound['makespan'])} of an all-to-all, {_share(bound['rank_mean'])} of the mean and "
        f"{_share(bound['rank_worst'])} of the worst rank"
    )


def _measured(verified: Mapping[str, Any] | None) -> str:
    if not verified:
        return ""
    periods = verified.get("periods", 0)
    if not periods or verified.get("makespan") is None:
        return "; none of it could be played again exactly"
    found = ", ".join(_share(verified[name]) for name in ("makespan", "rank_mean", "rank_worst"))
    return f"; measured here in {periods} busy period{'s' * (periods != 1)}: {found}"


def _share(value: float) -> str:
    """Return a share in per cent.

    Examples
    --------
    >>> _share(0.03), _share(0.000071), _share(0.0)
    ('3 %', '0.0071 %', '0 %')
    """
    return f"{100 * value:.2g} %"
