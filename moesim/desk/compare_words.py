"""A comparison in words: what won, by how much, and on what it rests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moesim.desk.compare_runs import SEEDS, Runs
from moesim.desk.comparing import Outcome
from moesim.desk.words import SHARES, label, show
from moesim.facts.record import Value
from moesim.study.compare import HEADLINES, Difference, Winner
from moesim.study.difference import BETTER, UNDECIDED, WORSE

if TYPE_CHECKING:
    from moesim.desk.compare_shown import Shown

SIGNS: Mapping[str, str] = {BETTER: "▲", WORSE: "▼", UNDECIDED: "○"}
"""A shape for each verdict, so that none is told by colour alone."""

VAGUE = 10
"""A relative interval wider than this many times the variant itself says only that the baseline may be 0; the absolute one says more."""


def is_share(name: str, unit: str) -> bool:
    """Tell whether a metric reads best in per cent."""
    return name in SHARES and unit == ""


def winner(found: Winner) -> str:
    """Say who wins by how much, or who cannot be told apart."""
    share = is_share(found.by, found.unit)
    if found.best is None:
        return f"No winner: no variant has a {label(found.by)}."
    word = {"lower": "lowest", "higher": "highest"}[found.better]
    if found.name is None:
        if found.low is None and found.margin is not None:
            return f"No winner: {found.best} has the {word} {label(found.by)}, and one piece of evidence cannot tell it from chance."
        who = f"{found.best} and {found.next} share" if found.margin == 0 else f"{found.best} has"
        return f"No winner: {listed(found.tied)} are not distinguishable by {label(found.by)}; {who} the {word}."
    by = "" if found.per_cent is None else f" ({abs(found.per_cent):.2g} %)"
    between = ""
    if found.low is not None and found.high is not None and found.high > found.low:
        between = f", interval {span(found.low, found.high, found.unit, share=share)}"
    return f"{found.name} wins by {label(found.by)}: {show(found.margin, found.unit, share=share)}{by} better than {found.next}{between}."


def price(outcome: Outcome | Shown) -> str:
    """Say what the winner drops, and who is best without; empty if the winner drops nothing."""
    comparison = outcome.comparison
    best, by = comparison.winner.best, comparison.winner.by
    dropped = comparison.metrics[best]["drop_rate"].value if best is not None else None
    if not dropped or by == "drop_rate":
        return ""
    sign = 1 if comparison.winner.better == "lower" else -1
    whole = {
        name: sign * value
        for name, metrics in comparison.metrics.items()
        if metrics["drop_rate"].value == 0 and (value := metrics[by].value) is not None
    }
    said = f"{best} drops {show(dropped, '', share=True)} of the routes"
    if not whole:
        return f"{said}."
    first = min(whole, key=lambda name: (whole[name], name))
    word = {"lower": "lowest", "higher": "highest"}[comparison.winner.better]
    return f"{said}; of the variants that drop none, {first} has the {word} {label(by)}, {_shown(comparison.metrics[first][by], by)}."


def evidence(outcome: Outcome) -> str:
    """Say on how many pieces of evidence the comparison rests."""
    runs = [each for each in outcome.question.runs if each.name in outcome.played]
    said = list(dict.fromkeys(_evidence(each, outcome) for each in runs))
    same = all(outcome.comparison.same_choices.values())
    tokens = "the same tokens for all" if same else "not the same tokens or choices for all"
    return f"{len(outcome.played)} variants, {' or '.join(said)}; {tokens}"


def _evidence(runs: Runs, outcome: Outcome) -> str:
    answers = outcome.played[runs.name].answers
    steps = len(answers[0].steps)
    each = f"{steps} step{'' if steps == 1 else 's'}"
    if runs.kind == SEEDS and len(answers) > 1:
        return f"{len(answers)} seeds of {each}"
    return f"one run of {each}"


def change(found: Difference, *, share: bool = False) -> str:
    """Write a difference in per cent of the baseline, in its own unit where that is 0, and of a share in percentage points.

    Examples
    --------
    >>> nothing = Difference(value=None, low=None, high=None, unit="s", verdict="not distinguishable", differs=None, better="lower")
    >>> change(nothing)
    '—'
    """
    if found.value is None:
        return "—"
    if found.value == 0:
        return "±0"
    if share:
        return f"{100 * found.value:+.3g} points".replace("-", "−")
    if found.per_cent is None:
        return signed(show(found.value, found.unit), found.value)
    return f"{_per_cent(found.per_cent)} %"


def signed(text: str, value: float) -> str:
    """Put a sign before a number that was written."""
    return text.replace("-", "−") if value < 0 else f"+{text}"


def span(low: float, high: float, unit: str, *, share: bool = False) -> str:
    """Write an interval, with its unit once where both ends have the same."""
    first, last = show(low, unit, share=share).replace("-", "−"), show(high, unit, share=share).replace("-", "−")
    number, _, of = first.partition(" ")
    return f"{number} – {last}" if of and of == last.partition(" ")[2] else f"{first} – {last}"


def corrected(found: Difference, *, share: bool = False) -> str:
    """Write the corrected interval of a difference as :func:`change` writes the difference; empty for none."""
    low, high = found.corrected_low, found.corrected_high
    if low is None or high is None or found.value is None or high <= low:
        return ""
    if share:
        return f"{100 * low:+.3g} … {100 * high:+.3g} points".replace("-", "−")
    if found.per_cent is None or found.value == 0:
        return span(low, high, found.unit)
    first, last = found.corrected_per_cent_low, found.corrected_per_cent_high
    if first is None or last is None or last - first > VAGUE * (100 + abs(found.per_cent)):
        return span(low, high, found.unit)
    return f"{_per_cent(first)} … {_per_cent(last)} %"


def told(found: Difference) -> str:
    """Write a verdict; of a metric without a direction, whether it differs."""
    if found.value is None:
        return "no value"
    if found.differs is None:
        return "one piece of evidence"
    if found.better == "neither":
        return "differs" if found.differs else UNDECIDED
    return found.verdict


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the last after *and*."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _per_cent(number: float) -> str:
    return (f"{number:+,.0f}" if abs(number) >= 999.5 else f"{number:+.3g}").replace("-", "−")


def _shown(value: Value, name: str) -> str:
    return show(value.value, value.unit, share=is_share(name, value.unit))


def headlines(by: str) -> tuple[str, ...]:
    """Return the metrics that stand first, the objective before all."""
    return (by, *(name for name in HEADLINES if name != by))
