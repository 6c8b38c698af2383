"""Assignments that are small enough to count by hand, and the settings in which an exchange carries them."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from moesim.facts.model import Attention, MoeModel
from moesim.facts.routing import Assignment, Kept, LayerRouting
from moesim.testing import tiny_cluster, tiny_setting

WIDTH = 256


def model(top_k):
    return MoeModel(
        name="m",
        layers=1,
        moe_layers=(0,),
        hidden=WIDTH,
        experts=64,
        top_k=top_k,
        expert_width=8,
        dispatch_width=WIDTH,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
    )


def assign(slots, token_start, slots_per_gpu, groups=1, padding=None, tokens_known=True, capacity=None):
    """Slots in blocks of ``slots_per_gpu``; slot s is expert s; every group holds the same."""
    slots = np.asarray(slots, dtype=np.int64)
    gpus = len(token_start) - 1
    ranks = gpus // groups
    count = ranks * slots_per_gpu
    known = LayerRouting.of_tokens(slots, token_start, count)
    routing = known if tokens_known else LayerRouting(experts=count, token_start=token_start, counts=known.counts)
    padding = np.zeros((gpus, count), dtype=np.int64) if padding is None else np.asarray(padding)
    first = np.arange(gpus) // ranks * ranks
    return Assignment(
        kept=Kept(routing=routing, dropped=np.zeros((gpus, count)), padding=padding, capacity=capacity),
        slot_counts=known.counts,
        slot_padding=padding,
        slots=slots if tokens_known else None,
        destination=first[:, None] + np.arange(count)[None, :] // slots_per_gpu,
    )


@st.composite
def assignments(draw):
    groups = draw(st.integers(1, 2))
    ranks = draw(st.integers(1, 4))
    per_gpu = draw(st.integers(1, 3))
    return draw(assignments_of(groups, ranks, per_gpu))


@st.composite
def assignments_of(draw, groups, ranks, per_gpu):
    top_k = draw(st.integers(1, ranks * per_gpu))
    lengths = draw(st.lists(st.integers(0, 6), min_size=groups * ranks, max_size=groups * ranks))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    tokens = sum(lengths)
    slots = np.array([rng.permutation(ranks * per_gpu)[:top_k] for _ in range(tokens)], dtype=np.int64).reshape(tokens, top_k)
    slots[rng.random(slots.shape) < 0.2] = -1  # dropped
    padding = rng.integers(0, 3, size=(groups * ranks, ranks * per_gpu)) * (rng.random() < 0.5)
    return assign(slots, np.concatenate([[0], np.cumsum(lengths)]), per_gpu, groups, padding), top_k, groups


def setting(top_k, *, gpus=4, nodes=2, ep=None):
    """GPUs in equal nodes, one group unless ``ep`` says otherwise."""
    base = tiny_setting(gpus=4, ep=4)
    parallel = dataclasses.replace(base.parallel, ep=gpus if ep is None else ep)
    return dataclasses.replace(base, model=model(top_k), cluster=tiny_cluster(gpus, nodes), parallel=parallel)
