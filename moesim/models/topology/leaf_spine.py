"""A network of leaves below spines: one spine that stands for all, or several among which a hash chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.base.errors import FieldError
from moesim.base.fields import Count, Seed
from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.models.topology.achieved import Link, delay
from moesim.models.topology.fabric_parts import Graph, ScaleOut, connect, links_at_most, star


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafSpine(ScaleOut):
    """The fields of every topology whose cards are joined by leaves and spines.

    Parameters
    ----------
    spines : int or None
        How many spines the leaves have a link each way to, which share the leaf's capacity. All bytes from one GPU to another take
        one of them, by a hash (ECMP), so that some uplinks carry more than others. If left out, all spines are one, as if every packet
        took another.
    ecmp_seed : int
        Another seed is another hash: other pairs collide.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.fabric_parts.ScaleOut`.
    """

    spines: Count | None = None
    ecmp_seed: Seed = 0

    def check_spines(self, leaves: int) -> None:
        """Refuse more spines than can be searched, and a seed that has nothing to choose from.

        Raises
        ------
        FieldError
            At ``spines`` or ``ecmp_seed``.
        """
        if self.spines is None and self.ecmp_seed:
            message = f"ecmp_seed ({self.ecmp_seed}) chooses among spines, and here all are one: write spines, or leave ecmp_seed out"
            raise FieldError("ecmp_seed", message)
        links_at_most("spines", 2 * leaves * (self.spines or 1), fewer="write fewer spines, or more nodes per leaf")

    def hash_seed(self) -> int | None:
        """Return the seed of the hash over spines; None where there is nothing to hash."""
        return None if self.spines is None else self.ecmp_seed

    def hang(self, graph: Graph, gpu: Gpu, leaves: Mapping[str, Sequence[int]]) -> Link:
        """Give every GPU a network card on its leaf, and return what the card achieves.

        Parameters
        ----------
        graph : networkx.DiGraph
            Changed in place.
        gpu : Gpu
            Whose card it is.
        leaves : mapping of str to sequence of int
            The GPUs below each leaf.
        """
        path = self.card(gpu)
        for leaf, gpus in leaves.items():
            star(graph, f"leaf:{leaf}", kind="leaf", gpus=gpus, link_class="nic", path=path)
        return path

    def join(self, graph: Graph, gpu: Gpu, leaves: Mapping[str, Sequence[int]]) -> None:
        """Give every GPU a network card and join the leaves through spines.

        Parameters
        ----------
        graph : networkx.DiGraph
            Changed in place.
        gpu : Gpu
            Whose card it is.
        leaves : mapping of str to sequence of int
            The GPUs below each leaf. With one leaf there is no spine.

        Notes
        -----
        With ``spines`` left out, the links between a leaf and the spines are drawn as one link each way, with their bandwidths
        added: what a fabric that balances its load perfectly over its spines would carry.
        """
        path = self.hang(graph, gpu, leaves)
        if len(leaves) == 1:
            return
        above = [f"spine:{spine}" for spine in range(self.spines or 1)]
        graph.add_nodes_from(above, kind="spine")
        for leaf, gpus in leaves.items():
            self.lift(graph, path, leaf, len(gpus), above)

    def lift(self, graph: Graph, path: Link, leaf: str, cards: int, above: Sequence[str]) -> Link:
        """Join a leaf to its spines, and return what one of these uplinks achieves.

        Parameters
        ----------
        graph : networkx.DiGraph
            Changed in place.
        path : Link
            What a card achieves.
        leaf : str
            The leaf's name.
        cards : int
            Below the leaf.
        above : sequence of str
            The spines; the leaf's capacity is shared equally among them.
        """
        seconds, basis = delay("switch", self.switch_latency)
        bandwidth = path.bandwidth * cards / self.oversubscription / len(above)
        each = Link(bandwidth=bandwidth, latency=seconds, basis=weakest([path.basis, basis]))
        for number, spine in enumerate(above):
            which = f"leaf{leaf}" if len(above) == 1 else f"leaf{leaf}-spine{number}"
            connect(graph, f"leaf:{leaf}", spine, name=f"uplink:{which}", link_class="uplink", link=each)
            connect(graph, spine, f"leaf:{leaf}", name=f"downlink:{which}", link_class="uplink", link=each)
        return each
