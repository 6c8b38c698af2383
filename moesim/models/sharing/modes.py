"""How exactly links are shared: which mode, how long its quanta are, and by how much it may be off."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.facts.scenario import Sharing

AUTO, EXACT, FAST, COARSE, BOUND = "auto", "exact", "fast", "coarse", "bound"

EXACT_FLOWS = 20_000
"""Up to so many flows at once ``auto`` is ``exact``: an all-to-all of 141 GPUs, or a two-stage one of 370."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A mode with its numbers.

    ``makespan``, ``rank_mean`` and ``rank_worst`` bound its errors, relative to exact sharing: of the end of an all-to-all, of the end of a
    rank on average, and of the worst rank, each as a share of its own time; ``rank_of_whole`` bounds that of the worst rank as a share of
    the whole all-to-all. None where the mode promises no such thing.
    """

    name: str
    quantum: float = 0.0
    guard: float = 0.0
    makespan: float | None = 1e-9
    rank_mean: float | None = 1e-9
    rank_worst: float | None = 1e-9
    rank_of_whole: float | None = 1e-9

    def errors(self) -> dict[str, float | None]:
        """Return the stated errors by name."""
        names = ("makespan", "rank_mean", "rank_worst", "rank_of_whole")
        return {name: getattr(self, name) for name in names}


MODES = {
    EXACT: Mode(name=EXACT),
    FAST: Mode(name=FAST, quantum=0.01, guard=2.0, makespan=0.001, rank_mean=0.003, rank_worst=0.03, rank_of_whole=0.01),
    COARSE: Mode(name=COARSE, quantum=0.03, makespan=0.01, rank_mean=None, rank_worst=None, rank_of_whole=0.05),
    BOUND: Mode(name=BOUND, makespan=None, rank_mean=None, rank_worst=None, rank_of_whole=None),
}
"""The errors hold for all traffic that was tried, the meanest included; docs/models/sharing.md says what that was. Without a guard, ranks
whose own time is a small part of the whole may be off by more than that time, so ``coarse`` says nothing of shares of it."""


def choose_mode(sharing: Sharing, flows: int) -> Mode:
    """Return the mode for so many flows at once.

    Parameters
    ----------
    sharing : Sharing
        What the scenario asks for.
    flows : int
        The most that will be on their way at once.
    """
    name = sharing.mode
    if name == AUTO:
        name = EXACT if flows <= EXACT_FLOWS else FAST
    usual = MODES[name]
    if name not in {FAST, COARSE} or (sharing.quantum is None and sharing.guard is None):
        return usual
    quantum = usual.quantum if sharing.quantum is None else sharing.quantum
    guard = usual.guard if sharing.guard is None else sharing.guard
    if quantum <= usual.quantum and (guard == usual.guard or 0 < guard <= 2):
        return Mode(
            name=name,
            quantum=quantum,
            guard=guard,
            makespan=usual.makespan,
            rank_mean=usual.rank_mean,
            rank_worst=usual.rank_worst,
            rank_of_whole=usual.rank_of_whole,
        )
    # Nobody has measured the errors of these numbers.
    return Mode(name=name, quantum=quantum, guard=guard, makespan=None, rank_mean=None, rank_worst=None, rank_of_whole=None)
