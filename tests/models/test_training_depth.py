"""A router that trains: what differs from layer to layer, from expert to expert and from kind to kind of tokens."""

import numpy as np
import pytest

from moesim.base.errors import FieldError
from moesim.models.bare_setting import bare_setting
from moesim.models.router.coefficients import OverDepth
from moesim.models.router.dynamics import RouterState, advance
from moesim.models.router.law import Law
from moesim.models.source.training import Training


def no_file(path):
    raise AssertionError(path)


def setting():
    return bare_setting(gpus=2, experts=8, top_k=2, layers=2, tokens_per_gpu=256, seed=1, read_trace=no_file)


def test_constants_that_change_over_depth():
    source = Training(preset="small-lm", feedback=((0.0, 1.0), (0.5, 3.0), (1.0, 4.0)), drive=0.25)
    law = source.law()
    assert [law.of_layer(layer, 5).feedback for layer in range(5)] == [1.0, 2.0, 3.0, 3.5, 4.0]
    assert {law.of_layer(layer, 5).drive for layer in range(5)} == {0.25}  # a number takes the place of the preset's corners
    assert law.of_layer(0, 1).feedback == 1.0  # the only layer is the first
    assert law.of_layer(3, 4).deep == ()
    with pytest.raises(FieldError, match=r"kind_share 0.9 and sequence_share 0.2 at depth 1 are more"):
        Training(kind_share=((0.0, 0.5), (1.0, 0.9)), sequence_share=0.2)


@pytest.mark.parametrize(
    ("value", "message"),
    [([], "the list is empty"), ([[0, 1], 2], "is no corner"), ([[0.5, 1], [0.5, 2]], "does not come after"), ([[2, 1]], "too large"),
     ([[0, -1]], "too small"), (-1, "too small")],
)  # fmt: skip
def test_depths_that_make_no_sense_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        OverDepth().parse(value)
    assert OverDepth().text(OverDepth().parse([[0, 1], [1, 2]])) == [[0.0, 1.0], [1.0, 2.0]]


def test_an_expert_without_tokens_learns_nothing():
    # 2 x / (x + 1) of 0, 1 and 3 times the mean load: 0, 1 and 1.5.
    state = RouterState(offsets=np.zeros(4), domains=np.zeros((1, 4)))
    advance(
        state,
        Law(feedback=0.0, domain_feedback=0.0, decay=0.0, drift=0.0),
        logits=np.zeros((8, 4)),
        domain=np.zeros(8, dtype=int),
        chosen=np.array([[2]] * 6 + [[1]] * 2),
        counted=np.array([0, 2, 6, 0]),
        group=np.zeros(8, dtype=int),
        top_k=1,
        balance=0.0,
        z=0.0,
        scoring="softmax",
        walk=np.zeros((2, 4)),
        growth=0.2,
    )
    np.testing.assert_allclose(state.grown, [0.0, 0.2, 0.3, 0.0])


def test_a_loss_takes_a_kind_from_its_favourite():
    # Two domains of two kinds each; the first kind is one and the same, and all its tokens go to expert 0.
    state = RouterState(
        offsets=np.zeros(2), domains=np.zeros((2, 2)), kinds=np.zeros((4, 2), dtype=np.float32), moved=np.zeros((4, 2), dtype=np.float32)
    )
    slope = 2 * 0.8807970779778823 * 0.11920292202211755 / 4  # of one token: (E / T) p_0 (1 - p_0) with f = (1, 0)
    advance(
        state,
        Law(feedback=0.0, domain_feedback=0.0, gain=0.0, kinds=2, kind_share=0.5, shared_kinds=1, kind_gain=3.0, decay=0.0, drift=0.0),
        logits=np.tile([2.0, 0.0], (4, 1)),
        domain=np.array([0, 0, 1, 1]),
        kind=np.array([0, 1, 2, 2]),
        chosen=np.zeros((4, 1), dtype=int),
        counted=np.array([4, 0]),
        group=np.zeros(4, dtype=int),
        top_k=1,
        balance=1.0,
        z=0.0,
        scoring="softmax",
        walk=np.zeros((3, 2)),
        plain=True,
    )
    # Three tokens of the shared kind, in both domains; one of domain 0's own; none of domain 1's own.
    np.testing.assert_allclose(state.moved[:, 0], [-9 * slope, -3 * slope, -9 * slope, 0.0], rtol=1e-5)
    np.testing.assert_allclose(state.moved[:, 1], [9 * slope, 3 * slope, 9 * slope, 0.0], rtol=1e-5)


def test_the_most_frequent_kinds_are_shared_by_domains():
    source = Training(domains=2, kinds=4, kind_share=1.0, shared_kinds=1, scale=1.0, experts_start=0.0, domain_start=0.0, scores=True,
                      feedback=0.0, domain_feedback=0.0, drift=0.0, decay=0.0)  # fmt: skip
    layer = source.begin(setting())(0).layers[0]
    kinds = [{tuple(row) for row in np.round(layer.scores[layer.domains == domain], 5).tolist()} for domain in (0, 1)]
    assert len(kinds[0]) == len(kinds[1]) == 4
    assert len(kinds[0] & kinds[1]) == 1
