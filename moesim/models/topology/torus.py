"""GPUs in a ring, grid or cube with links that wrap around: TPU pods, Trainium servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Count, Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.achieved import link_of
from moesim.models.topology.fabric_parts import Graph, at_most, connect, gpus_on
from moesim.models.topology.flatten import flatten

MOST_STEPS = 2**27
"""Links of all routes together; more would take gigabytes."""


@register("topology", "torus")
@dataclass(frozen=True, slots=True, kw_only=True)
class Torus:
    """GPUs on a ring, a grid or a cube, each with a link to the next and the previous one in every dimension, around the ends.

    GPUs forward: bytes go the shorter way around in the first dimension, then in the second, then in the third (dimension-ordered
    routing). Half-way around both ways are equally short; then the way is up if the coordinates of both ends, without the
    receiver's in that dimension, have an even sum, and down otherwise, so that both directions are used alike.

    Parameters
    ----------
    gpu : Gpu
        A preset's name or a mapping.
    dims : list of int
        One to three sizes, each at least 2. The last coordinate counts fastest: in ``[4, 8]`` GPU 11 is at (1, 3). In a dimension of
        2 the next and the previous GPU are the same one, and there is one link to it.
    gpus_per_node : int
        GPU ``i`` is on node ``i // gpus_per_node``; divides the number of GPUs. It decides only which bytes count as between nodes.
    link : bandwidth or None
        Of each link, one way; if left out, the GPU's scale-up bandwidth shared equally by its links.
    link_latency : time or None
        Of each link of a route; if left out, 1 us (assumed).
    link_efficiency : fraction or None
        What share of ``link`` is achieved; if left out, 0.61 of the data sheet (carried over from the links of MI300X), or all of a
        written ``link``.

    Notes
    -----
    Dimension-ordered routing: W. J. Dally and C. L. Seitz, "Deadlock-free message routing in multiprocessor interconnection
    networks", IEEE Trans. Computers C-36, 1987. The memory and the kernels of GPUs that forward are not slowed by it.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["mi300x"])
    dims: tuple[Count, ...] = (4, 4)
    gpus_per_node: Count = 1
    link: BytesPerSecond | None = None
    link_latency: Seconds | None = None
    link_efficiency: Efficiency | None = None

    def __post_init__(self) -> None:
        written = list(self.dims)
        if not 1 <= len(written) <= 3:
            raise FieldError("dims", f"dims has {len(written)} sizes: write one, two or three, such as [4, 4] or [4, 4, 4]")
        if min(written) < 2:
            raise FieldError("dims", f"dims {written} has a dimension of {min(written)}: leave it out, for it joins nobody")
        gpus = math.prod(written)
        at_most("dims", gpus)
        steps = gpus * sum(gpus // size * sum(min(step, size - step) for step in range(size)) for size in written)
        if steps > MOST_STEPS:
            message = f"the routes of {written} cross {steps} links in all, more than the {MOST_STEPS} that fit in memory"
            raise FieldError("dims", f"{message}: write sizes nearer to each other, or fewer GPUs")
        if gpus % self.gpus_per_node:
            raise FieldError("gpus_per_node", f"the {gpus} GPUs do not divide into nodes of {self.gpus_per_node}")

    def graph(self) -> Graph:
        """Return the GPUs and their links; there are no switches."""
        gpus = math.prod(self.dims)
        graph = gpus_on([number // self.gpus_per_node for number in range(gpus)])
        around = neighbours(self.dims)
        sheet = self.gpu.nvlink / len(around[0])
        link = link_of("torus", self.gpu, written=self.link, datasheet=sheet, efficiency=self.link_efficiency, latency=self.link_latency)
        for tail in range(gpus):
            for head in around[tail]:
                connect(graph, f"gpu:{tail}", f"gpu:{head}", name=f"torus:{tail}-{head}", link_class="torus", link=link)
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        return flatten(self.graph(), gpu=self.gpu, walks=lambda source: dimension_ordered(self.dims, source))


def neighbours(dims: Sequence[int]) -> list[list[int]]:
    """Return the neighbours of every GPU of a torus, each once: the next and the previous one in each dimension.

    Examples
    --------
    >>> neighbours([2, 3])[0]
    [3, 1, 2]
    """
    numbers = np.arange(math.prod(dims)).reshape(dims)
    columns = [np.roll(numbers, turn, axis).ravel() for axis, size in enumerate(dims) for turn in ((-1, 1) if size > 2 else (1,))]
    return np.stack(columns, axis=1).tolist()  # type: ignore[no-any-return]


def dimension_ordered(dims: Sequence[int], source: int) -> Ints:
    """Return the GPUs that bytes from one GPU pass on a torus.

    Parameters
    ----------
    dims : sequence of int
        Sizes.
    source : int
        The sender.

    Returns
    -------
    int[G, 1 + sum(dims // 2)]
        Row d: from the source to GPU d, with -1 where a shorter way needs fewer steps.
    """
    goals = np.stack(np.unravel_index(np.arange(math.prod(dims)), dims))
    at = np.repeat(np.stack(np.unravel_index(source, dims))[:, None], goals.shape[1], axis=1)
    begun = at.sum(axis=0) + goals.sum(axis=0)
    passed = [np.full(goals.shape[1], source)]
    for axis, size in enumerate(dims):
        ahead = (goals[axis] - at[axis]) % size
        even = (begun - goals[axis]) % 2 == 0
        up = (2 * ahead < size) | ((2 * ahead == size) & even)
        steps, turn = np.where(up, ahead, size - ahead), np.where(up, 1, -1)
        for step in range(size // 2):
            going = step < steps
            at[axis] = np.where(going, (at[axis] + turn) % size, at[axis])
            passed.append(np.where(going, np.ravel_multi_index(tuple(at), tuple(dims)), -1))
    return np.stack(passed, axis=1)
