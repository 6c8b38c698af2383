"""What every sharing core offers to the engine, and how one is made."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.delays import Prompt, Whole32
from moesim.models.sharing.modes import BOUND, EXACT, Mode


class Core(Prompt, Protocol):
    """Flows on links without a clock of their own; :class:`~moesim.models.sharing.groups.GroupsCore` describes each method.

    A core never goes beyond the horizon that it is given, so that whoever owns the clock can let flows start at any time.
    """

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,
        delay: Floats | None = None,
    ) -> Ints:
        """Let flows start to move, each after its delay."""
        ...


@runtime_checkable
class Lendable(Core, Protocol):
    """A core whose arrays compiled code can be given, to play more than links with them (:mod:`moesim.models.sharing.rank_chains`)."""

    def can_be_lent(self) -> bool:
        """Return whether nothing is on its way, and all flows so far had equal shares and no caps."""
        ...

    def lend(self) -> tuple[Any, ...]:
        """Return the arrays that ``bottleneck_groups.ADVANCE_TAKES`` lists, bool[K], the links that may become full, and free numbers."""
        ...

    def take_back(self, top: int, live: int, free: int, now: float) -> None:
        """Learn how many numbers of flows are in use, how many flows are on their way, how many numbers are still free, and the time."""
        ...

    def held(self) -> tuple[int, int, int]:
        """Return how many numbers of flows are in use, how many flows are on their way, and how many numbers are free again."""
        ...

    def make_room(self) -> None:
        """Make room in the lists of links."""
        ...


def can_compile() -> bool:
    """Return whether compiled code can be used on this machine."""
    try:
        import numba  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def make_core(mode: Mode, capacity: Floats, *, hops: int, pairs: int, follows: Ints | None) -> Core:
    """Return a fresh core for a mode.

    Parameters
    ----------
    mode : Mode
        As :func:`moesim.models.sharing.modes.choose_mode` returns it.
    capacity : float[K]
        Of each link, in B/s.
    hops : int
        Links on the longest route.
    pairs : int
        How many pairs of GPUs are told apart.
    follows : int[N, 2] or None
        As :func:`moesim.models.sharing.never_full.follows_of` returns it.
    """
    if mode.name == BOUND:
        from moesim.models.sharing.bound import BoundCore

        return BoundCore(capacity, hops=hops, pairs=pairs)
    if not can_compile():
        from moesim.models.sharing.delays import Delays
        from moesim.models.sharing.without_numba import PlainCore

        return Delays(PlainCore(capacity, hops=hops, pairs=pairs))
    if mode.name == EXACT:
        from moesim.models.sharing.groups import GroupsCore

        return GroupsCore(capacity, hops=hops, pairs=pairs, follows=follows)
    from moesim.models.sharing.delays import Delays
    from moesim.models.sharing.quanta import QuantaCore

    return Delays(QuantaCore(capacity, hops=hops, pairs=pairs, quantum=mode.quantum, guard=mode.guard, follows=follows))


def needs_compiling() -> bool:
    """Return true if the next run has to compile the exact core, or the steps that are played with it, which takes some seconds, once."""
    if not can_compile():
        return False
    from moesim.models.sharing.groups import is_cached

    return not is_cached()
