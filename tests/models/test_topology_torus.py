"""Tori: the shorter way around, dimension by dimension; counts by closed form."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moesim.base.errors import FieldError
from moesim.base.registry import build
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.topology.layout import layout
from moesim.models.topology.layout_shapes import torus_sizes
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.torus import MOST_STEPS, Torus
from moesim.testing import check_topology

sizes = st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple).filter(lambda dims: math.prod(dims) <= 40)


def passed(cluster, source, destination):
    """The GPUs on the way, read off the names of the links."""
    ends = [cluster.link_names[link].removeprefix("torus:").split("-") for link in cluster.route(source, destination)]
    assert [head for _, head in ends[:-1]] == [tail for tail, _ in ends[1:]]
    return [int(ends[0][0]), *(int(head) for _, head in ends)]


def load(cluster):
    return np.bincount(cluster.route_link, minlength=cluster.links)


def test_the_first_dimension_comes_first_and_the_shorter_way_around():
    # 4 x 5: GPU 0 is (0, 0), GPU 8 is (1, 3). One up in the first dimension, to (1, 0); then two down, by (1, 4), instead of three up.
    cluster = Torus(dims=(4, 5)).build()
    assert passed(cluster, 0, 8) == [0, 5, 9, 8]


def test_half_way_around_the_sum_of_coordinates_decides():
    # 4 x 5: (0, 0) to (2, 0): 0 + 0 and the receiver's 0: even, up. (1, 0) to (3, 0): 1: odd, down. (0, 0) to (2, 1): 1: odd, down.
    cluster = Torus(dims=(4, 5)).build()
    assert passed(cluster, 0, 10) == [0, 5, 10]
    assert passed(cluster, 5, 15) == [5, 0, 15]
    assert passed(cluster, 0, 11) == [0, 15, 10, 11]


def test_every_hop_adds_its_latency():
    cluster = Torus(dims=(6,), link_latency=3e-6).build()
    assert cluster.route_latency()[0] == pytest.approx([0, 3e-6, 6e-6, 9e-6, 6e-6, 3e-6])


def test_left_out_the_links_share_the_scale_up_bandwidth():
    # MI300X: 448 GB/s x 0.61. A cube has six links; 2 x 4 has one in the first dimension and two in the second.
    for dims, links in (((4, 4, 4), 6), ((2, 4), 3)):
        cluster = Torus(dims=dims).build()
        assert cluster.bandwidth == pytest.approx(np.full(cluster.links, gpu_presets()["mi300x"].nvlink * 0.61 / links))
        assert cluster.basis == "assumed"
    assert set(Torus(link=5.0).build().bandwidth) == {5.0}


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_counts_of_links_and_steps_are_those_of_the_closed_form(dims):
    cluster, gpus = Torus(dims=dims).build(), math.prod(dims)
    assert cluster.links == gpus * sum(2 if size > 2 else 1 for size in dims)
    # The mean way around a ring of n is n / 4 for even n, and (n * n - 1) / 4 n for odd n, over all n places.
    mean = sum(size / 4 if size % 2 == 0 else (size * size - 1) / (4 * size) for size in dims)
    assert len(cluster.route_link) == pytest.approx(gpus * gpus * mean)
    # Half of an even dimension: the cut goes through both ends of every line, in both directions.
    numbers = np.arange(gpus).reshape(dims)
    for axis, size in enumerate(dims):
        if size % 2 == 0:
            low = set(np.take(numbers, range(size // 2), axis).ravel().tolist())
            ends = [tuple(map(int, name.removeprefix("torus:").split("-"))) for name in cluster.link_names]
            crossing = sum((tail in low) != (head in low) for tail, head in ends)
            assert crossing == gpus // size * (4 if size > 2 else 2)


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_every_route_is_connected_without_a_loop_and_as_short_as_can_be(dims):
    topology = Torus(dims=dims)
    check_topology(topology)
    cluster = topology.build()
    places = np.stack(np.unravel_index(np.arange(math.prod(dims)), dims), axis=1)
    for source in range(cluster.gpus):
        for destination in set(range(cluster.gpus)) - {source}:
            way = passed(cluster, source, destination)
            assert way[0] == source
            assert way[-1] == destination
            assert len(set(way)) == len(way)
            apart = abs(places[source] - places[destination])
            assert len(way) - 1 == np.minimum(apart, np.array(dims) - apart).sum()
            # Dimension-ordered: the dimension of a step never goes back.
            moved = [int(np.flatnonzero(places[one] != places[other])[0]) for one, other in pairwise(way)]
            assert moved == sorted(moved)


@pytest.mark.parametrize("dims", [(4, 4), (4, 6), (6, 2), (4, 4, 4), (2, 4, 6)])
def test_an_all_to_all_loads_all_links_of_a_dimension_alike(dims):
    # Even sizes: in a dimension of n, N * (N / n) * (n * n / 4) steps share 2 N links (N where n = 2): n N / 8 bytes each (N / 2). This is
    # what the rule for ties is for.
    cluster, gpus = Torus(dims=dims).build(), math.prod(dims)
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    for link, name in enumerate(cluster.link_names):
        tail, head = map(int, name.removeprefix("torus:").split("-"))
        axis = next(axis for axis, size in enumerate(dims) if tail // strides[axis] % size != head // strides[axis] % size)
        assert load(cluster)[link] == (gpus * dims[axis] // 8 if dims[axis] > 2 else gpus // 2)


def test_l16_a_torus_of_other_sizes_carries_other_bytes():
    # 16 GPUs, one byte a pair: 16 * 16 * (1 + 1) steps on 4 x 4, 16 * 16 * (2 + 0.5) on 8 x 2, and 16 * 15 where all are joined directly.
    for topology, steps in ((Torus(dims=(4, 4)), 512), (Torus(dims=(8, 2)), 640), (Mesh(gpus_per_node=16), 240)):
        assert load(topology.build()).sum() == steps


@settings(max_examples=30, deadline=None)
@given(sizes.filter(lambda dims: math.prod(dims) > 2))
def test_drawings_recognise_a_torus_and_put_every_gpu_in_a_place_of_its_own(dims):
    graph = Torus(dims=dims).graph()
    found = torus_sizes(graph)
    assert set(Torus(dims=found).graph().edges) == set(graph.edges)
    places = sorted(layout(graph).values())
    assert len(places) == math.prod(dims)
    assert min(math.dist(one, other) for i, one in enumerate(places) for other in places[:i]) > 0.25
    assert torus_sizes(Mesh(gpus_per_node=6).graph()) is None


@pytest.mark.parametrize(
    ("keys", "field", "message"),
    [
        ({"dims": ()}, "dims", "dims has 0 sizes: write one, two or three"),
        ({"dims": (2, 2, 2, 2)}, "dims", "dims has 4 sizes"),
        ({"dims": (4, 1)}, "dims", r"dims \[4, 1\] has a dimension of 1: leave it out"),
        ({"dims": (64, 64)}, "dims", "4096 GPUs are too many"),
        ({"dims": (2048,)}, "dims", f"cross 2147483648 links in all, more than the {MOST_STEPS} that fit in memory: write sizes nearer"),
        ({"dims": (3, 3), "gpus_per_node": 2}, "gpus_per_node", "the 9 GPUs do not divide into nodes of 2"),
    ],
)
def test_bad_sizes_are_refused(keys, field, message):
    with pytest.raises(FieldError, match=message) as caught:
        Torus(**keys)
    assert caught.value.field == field


@pytest.mark.parametrize(("dims", "message"), [([4, 0], "0 is too small"), ([4, 2.5], "2.5 is not a whole number"), (4, "tuple")])
def test_sizes_that_are_no_list_of_whole_numbers_are_refused(dims, message):
    with pytest.raises(ValidationError, match=message):
        build(Torus, {"dims": dims})
