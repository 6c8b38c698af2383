"""What the importers of one server have in common: buses, network cards, and which card is whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moesim.models.topology.wiring import Vertex, WiredLink, Wiring

DISTANCE = {"PIX": 0, "PXB": 1, "PHB": 2, "NODE": 3, "SYS": 4}
"""Words of ``nvidia-smi topo -m`` for how far two devices are apart, nearest first; ``SOC`` is what old drivers say for ``SYS``."""

NEAR = DISTANCE["PXB"]
"""Up to here two devices share a PCIe switch."""

BUS = 2
"""Weight of a link that is no NVLink: NVLinks have 1, so bytes take a bus only where no NVLink joins two GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A network card: the vertex it hangs on, its line rate and that of its slot in B/s (None if unknown)."""

    parent: str
    rate: float | None = None
    slot: float | None = None


@dataclass(slots=True, kw_only=True)
class Host:
    """A server that is being put together."""

    source: str
    links: list[WiredLink] = field(default_factory=list)
    vertices: dict[str, Vertex] = field(default_factory=dict)

    def bus(self, one: str, other: str, *, link_class: str = "pcie", bandwidth: float | None = None, lanes: int | None = None) -> None:
        """Join two vertices by a bus, both ways."""
        self.links.append(WiredLink(ends=(one, other), link_class=link_class, bandwidth=bandwidth, lanes=lanes, weight=BUS))

    def nvlink(self, one: str, other: str, *, lanes: int) -> None:
        """Join two vertices by a bundle of NVLinks, both ways."""
        self.links.append(WiredLink(ends=(one, other), link_class="nvlink", lanes=lanes))

    def finished(self, gpus: Sequence[int], cards: Mapping[int, Card], distance: Mapping[int, Mapping[int, int]]) -> Wiring:
        """Give every GPU its network cards and return the server.

        Parameters
        ----------
        gpus : sequence of int
            Numbers of the GPUs.
        cards : mapping of int to Card
            By number. Cards that no GPU takes are left out.
        distance : mapping
            How far (a value of ``DISTANCE``) each card is from each GPU.
        """
        taken = share_out(cards, {gpu: distance[gpu] for gpu in gpus} if cards else {})
        for numbers in dict.fromkeys(taken.values()):
            bundle = [cards[number] for number in numbers]
            name = f"nic:{'+'.join(map(str, numbers))}"
            slots = [card.slot for card in bundle if card.slot is not None]
            self.bus(bundle[0].parent, name, bandwidth=sum(slots) if len(slots) == len(bundle) else None)
            rates = [card.rate for card in bundle if card.rate is not None]
            self.vertices[name] = Vertex(kind="nic", rate=sum(rates) if len(rates) == len(bundle) else None)
        for gpu in gpus:
            nic = f"nic:{'+'.join(map(str, taken[gpu]))}" if gpu in taken else None
            self.vertices[f"gpu:{gpu}"] = Vertex(kind="gpu", node=0, nic=nic)
        return Wiring(source=self.source, vertices=self.vertices, links=tuple(self._used()))

    def _used(self) -> list[WiredLink]:
        """Return the links without dead ends: buses that lead only to cards that nobody takes."""
        links = self.links
        while True:
            ends = Counter(end for link in links for end in link.ends)
            left = [link for link in links if all(ends[end] > 1 or end in self.vertices for end in link.ends)]
            if len(left) == len(links):
                return left
            links = left


def share_out(cards: Mapping[int, Card], distance: Mapping[int, Mapping[int, int]]) -> dict[int, tuple[int, ...]]:
    """Return the cards of each GPU.

    GPUs with the same nearest cards share these out among themselves in order: fewer cards than GPUs are shared, and where there are
    twice as many (or more) on the same PCIe switch, with known rates, a GPU uses several at once, as NCCL does.

    Parameters
    ----------
    cards : mapping of int to Card
        By number.
    distance : mapping
        By GPU, then by card.

    Examples
    --------
    >>> card = Card(parent="pcie:0")
    >>> share_out({0: card, 1: card}, {0: {0: 0, 1: 3}, 1: {0: 0, 1: 3}, 2: {0: 3, 1: 0}})
    {0: (0,), 1: (0,), 2: (1,)}
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for gpu, far in distance.items():
        nearest = min(far.values())
        groups.setdefault(tuple(sorted(card for card, steps in far.items() if steps == nearest)), []).append(gpu)
    owner: dict[int, tuple[int, ...]] = {}
    taken: dict[int, tuple[int, ...]] = {}
    for near, gpus in groups.items():
        free = [card for card in near if card not in owner]
        if free:
            close = distance[gpus[0]][free[0]] <= NEAR and len({cards[card].parent for card in free}) == 1
            known = all(cards[card].rate is not None for card in free)
            each = max(1, len(free) // len(gpus)) if close and known else 1
            bundles = [tuple(free[start : start + each]) for start in range(0, len(free) - each + 1, each)][: len(gpus)]
        else:
            bundles = list(dict.fromkeys(owner[card] for card in near))
        for bundle in bundles:
            owner |= dict.fromkeys(bundle, bundle)
        for place, gpu in enumerate(gpus):
            taken[gpu] = bundles[place * len(bundles) // len(gpus)]
    return dict(sorted(taken.items()))
