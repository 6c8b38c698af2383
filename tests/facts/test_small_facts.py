"""Sizes, sums and refusals of the smaller facts, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesim.base.errors import FieldError, TraceError
from moesim.facts.model import Attention, MoeModel
from moesim.facts.record import Table
from moesim.facts.scenario import Parallel, Scenario, Setting, Workload
from moesim.facts.trace import Trace
from moesim.facts.traffic import Traffic


def model(**changes):
    given = {
        "name": "hand",
        "layers": 3,
        "moe_layers": (0, 2),
        "hidden": 8,
        "experts": 6,
        "top_k": 2,
        "expert_width": 5,
        "shared_width": 3,
        "dense_width": 7,
        "dispatch_width": 8,
        "vocabulary": 11,
        "groups": 3,
        "attention": Attention(heads=1, score_width=1.0, projection_parameters=100, cache_bytes_per_token=1),
    }
    return MoeModel(**(given | changes))


def test_parameters_by_hand():
    # Embedding and head 2 * 11 * 8; attention 3 * 100; one dense block 3*8*7; two MoE layers of a router 8*6, shared experts 3*8*3 and six
    # experts of 3*8*5 = 120.
    assert model().expert_parameters == 120
    assert model().total_parameters == 176 + 300 + 168 + 2 * (48 + 72 + 720)
    # A token meets two of six experts in each of two layers.
    assert model().active_parameters == 176 + 300 + 168 + 2 * (48 + 72 + 240)
    assert model().routed_flops == 240
    assert model(expert_dtype="fp4").expert_bytes == 60.0
    # Latent experts of width 4: half as large, and projections of 8 x 4 to and fro in each MoE layer; one matrix of embeddings less.
    latent = model(dispatch_width=4, tied_embeddings=True)
    assert latent.total_parameters == 88 + 300 + 168 + 2 * (48 + 72 + 2 * 32 + 360)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"top_k": 7}, "top_k", r"top_k \(7\) is larger than experts \(6\)"),
        ({"moe_layers": ()}, "moe_layers", "no layer has experts"),
        ({"moe_layers": (2, 0)}, "moe_layers", r"\[2, 0\] must be increasing, each layer once"),
        ({"moe_layers": (1, 1)}, "moe_layers", r"\[1, 1\] must be increasing, each layer once"),
        ({"moe_layers": (0, 3)}, "moe_layers", "layer 3 does not exist: the model has layers 0 to 2"),
        ({"groups": 4}, "groups", "6 experts do not divide into 4 groups"),
        ({"top_groups": 4}, "top_groups", r"top_groups \(4\) is larger than groups \(3\)"),
    ],
)
def test_models_that_cannot_be_are_refused_at_their_field(changes, field, message):
    with pytest.raises(FieldError, match=message) as caught:
        model(**changes)
    assert caught.value.field == field


def test_models_at_the_edge_can_be():
    edge = model(top_k=6, moe_layers=(0, 1, 2), groups=6, top_groups=6)
    assert edge.active_parameters == edge.total_parameters


@pytest.mark.parametrize(("steps", "warmup", "fits"), [(3, 2, True), (3, 3, False), (1, 0, True), (1, 1, False)])
def test_warmup_leaves_a_step_to_measure(steps, warmup, fits):
    def make():
        world = {"cluster": None, "parallel": Parallel(ep=1), "workload": Workload(tokens_per_gpu=1), "routing": None}
        parts = dict.fromkeys(("exchange", "compute", "schedule", "policy"))
        return Scenario(name="s", model=model(), steps=steps, warmup=warmup, **world, **parts)

    if fits:
        assert make().warmup == warmup
        return
    with pytest.raises(FieldError, match=rf"warmup \({warmup}\) leaves none of the {steps} steps to measure"):
        make()


def test_groups_share_the_gpus():
    # 12 GPUs in groups of 4 ranks: three groups.
    given = {"model": model(), "workload": Workload(tokens_per_gpu=1), "seed": 3, "read_trace": None}
    setting = Setting(cluster=SimpleNamespace(gpus=12), parallel=Parallel(ep=4), **given)
    assert (setting.gpus, setting.groups) == (12, 3)
    # Streams of one name agree, others do not, and the seed is part of the name.
    assert setting.rng("a", 1).integers(2**60) == setting.rng("a", 1).integers(2**60) != setting.rng("a", 2).integers(2**60)


def test_columns_of_a_table_are_equally_long():
    table = Table(columns={"a": np.array([1, 2, 3]), "b": np.array([4.0, 5.0, 6.0])}, units={"b": "s"})
    assert len(table) == 3
    some = table.where(np.array([True, False, True]))
    assert (some["a"].tolist(), some["b"].tolist(), some.units) == ([1, 3], [4.0, 6.0], {"b": "s"})
    assert len(Table(columns={})) == 0
    with pytest.raises(ValueError, match=r"columns differ in length: \{'a': 1, 'b': 2\}"):
        Table(columns={"a": np.zeros(1), "b": np.zeros(2)})


def test_padding_of_traffic_is_nothing_unless_it_is_given():
    copies = np.array([[0, 2], [3, 0]])
    assert Traffic(bytes=copies * 10, copies=copies).padding.tolist() == [[0, 0], [0, 0]]
    given = Traffic(bytes=copies * 10, copies=copies, padding=np.array([[0, 1], [0, 0]]))
    assert given.padding.tolist() == [[0, 1], [0, 0]]
    assert given.bytes.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        given.padding[0, 0] = 1


def recorded(**changes):
    given = {"name": "t.npz", "digest": "0", "layers": 1, "experts": 2, "top_k": 1, "ids": np.zeros((4, 1, 1), dtype=int)}
    return Trace(**(given | changes))


def test_ranks_of_a_trace():
    by_source = {"source": np.array([0, 0, 2, 2])}
    counts = {"ids": None, "counts": np.ones((1, 1, 3, 2), dtype=int)}
    assert recorded().named_ranks is None
    assert recorded(**by_source).named_ranks == 3
    assert recorded(**by_source, ranks=5).named_ranks == 5
    # Counts that were added up over sources have one row, which is no rank.
    assert recorded(**counts, by_source=True).named_ranks == 3
    assert recorded(**counts).named_ranks is None


def test_a_trace_fits_as_many_ranks_as_it_had():
    silent, stated = recorded(source=np.array([0, 0, 2, 2])), recorded(source=np.array([0, 0, 2, 2]), ranks=4)
    assert silent.fits_ranks(3) == stated.fits_ranks(4) == recorded().fits_ranks(9) == ""
    # Ranks without tokens leave nothing behind, so more ranks than the largest source may have been there.
    assert silent.fits_ranks(5).endswith("its largest source is 2: the last 2 of 5 have no tokens")
    with pytest.raises(TraceError, match=r"was recorded on 3 ranks at least \(its largest source is 2\), but 2 are asked for"):
        silent.fits_ranks(2)
    for asked in (3, 5):
        with pytest.raises(TraceError, match=rf"was recorded on 4 ranks \(it says so\), but {asked} are asked for"):
            stated.fits_ranks(asked)
