"""Models of a machine's own rates, and of computing beside communication: by hand, and found again in rows made from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import CalibrationError
from moesim.desk.presets.profiles import shipped_profiles
from moesim.models.fitted import Fitted
from moesim.models.fitted.deepep_low_latency import DeepEpLowLatency
from moesim.models.fitted.deepep_normal import DeepEpNormal
from moesim.models.fitted.expert_ffn import ExpertFfn
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.fitted.fused_layer import FusedLayer
from moesim.models.fitted.grouped_gemm_kernel import GroupedGemmKernel
from moesim.models.fitted.nccl_all_to_all import NcclAllToAll
from moesim.models.fitted.nvlink_rack import NvlinkRack
from moesim.models.fitted.overlap import Overlap
from moesim.models.fitted.own_all_to_all import OwnAllToAll
from moesim.models.fitted.point_to_point import PointToPoint
from moesim.models.fitted.token_work import TokenWork

LOOP = ExpertLoop(launch=2e-5, per_expert=1e-5, memory_rate=1e10, compute_rate=5e10, sharpness=3.0)


def loop_rows(lists, hidden=512, width=1024, matrices=3.0):
    most = max(map(len, lists))
    given_rows = np.asarray([list(each) + [0] * (most - len(each)) for each in lists], dtype=float)
    alike = {"hidden_size": hidden, "inter_size": width, "matrices": matrices, "weight_bytes": 4, "row_bytes": 4}
    return {
        "expert_rows": given_rows,
        "most_rows": given_rows.max(axis=1),
        **{name: np.full(len(lists), float(value)) for name, value in alike.items()},
    }


def overlap_rows(pairs, op="both"):
    alone, moving = (np.asarray(column, dtype=float) for column in zip(*pairs, strict=True))
    return {"compute_seconds": alone, "exchange_seconds": moving, "num_gpus": np.full(len(pairs), 2.0), "op": np.full(len(pairs), op)}


def test_they_offer_what_every_fitted_model_offers():
    for model in (LOOP, TokenWork(launch=1.0, element_rate=2.0), Overlap(compute_lost=0.1, exchange_lost=0.2)):
        assert isinstance(model, Fitted)
        assert type(model).of_section(model.section()) == model


def test_experts_one_after_the_other_by_hand():
    # Sharp corner, no launches. Weights: 3 x 2 x 4 elements of 4 B = 96 B; a row passes 2 x 2 + 3 x 4 = 16 elements of 4 B = 64 B.
    values = {"launch": 0.5, "per_expert": 0.25, "memory_rate": 32.0, "compute_rate": 24.0, "sharpness": 400.0}
    rows = loop_rows([(1, 0, 10)], hidden=2, width=4)
    # 1 row: reading (96 + 64) / 32 = 5 s against computing 48 / 24 = 2 s. 10 rows: (96 + 640) / 32 = 23 s against 480 / 24 = 20 s.
    assert ExpertLoop.seconds_of(values, rows)[0] == pytest.approx(0.5 + 2 * 0.25 + 5 + 23)


def test_skew_costs_a_loop_what_its_idle_weights_cost():
    # All rows on one expert read one expert's weights; spread out they read all: in decode that is dearer, and dearer than load says.
    one, spread = LOOP.predict(loop_rows([(8, 0, 0, 0), (2, 2, 2, 2)]))
    assert spread > 2 * one


def test_the_loop_finds_known_parameters_again():
    lists = [[rows] * 8 for rows in (1, 2, 4, 8, 16, 64, 256)] + [(1, 5, 20, 80), (300, 0, 1, 9)]
    rows = {name: np.concatenate([loop_rows(lists, *shape)[name] for shape in ((512, 1024), (256, 512))]) for name in loop_rows(lists)}
    noise = np.exp(0.01 * np.random.default_rng(1).standard_normal(len(rows["most_rows"])))
    found = ExpertLoop.fit(rows, LOOP.predict(rows) * noise)
    assert found.compute_rate == pytest.approx(5e10, rel=0.05)
    assert found.memory_rate == pytest.approx(1e10, rel=0.2)
    few = loop_rows([[rows] * 4 for rows in (1, 2, 3, 4)] * 3)
    with pytest.raises(CalibrationError, match="most_rows goes from 1 to 4 only"):
        ExpertLoop.fit(few, LOOP.predict(few))


def test_an_all_to_all_of_ones_own_finds_itself_again_and_says_what_it_cannot():
    truth = OwnAllToAll(launch=3e-4, per_peer=1e-12, ramp_cost=1e-12, ramp_bytes=1e6, port_rate=4e8, fan_in=1e-12)
    sizes = np.asarray([1e4, 3e4, 1e5, 1e6, 4e6])
    rows = {"num_gpus": np.full(5, 2.0), "port_bytes": sizes}
    found = OwnAllToAll.fit(rows, truth.predict(rows))
    assert found.launch == pytest.approx(3e-4, rel=0.02)
    assert found.port_rate == pytest.approx(4e8, rel=0.02)
    assert {item.name for item in found.section().parameters if item.basis == "assumed"} == {
        "per_peer",
        "fan_in",
        "ramp_cost",
        "ramp_bytes",
    }
    with pytest.raises(CalibrationError, match="only; measure sizes that differ"):
        OwnAllToAll.fit({"num_gpus": np.full(5, 2.0), "port_bytes": np.arange(5) + 5e5}, np.full(5, 1e-3))


def test_overlap_by_hand():
    # Experts of 3 s lose half their pace beside an exchange of 2 s that loses a fifth: it ends at 2.5 s, when 1.25 s of work are done.
    values = {"compute_lost": 0.5, "exchange_lost": 0.2}
    ends = {op: Overlap.seconds_of(values, overlap_rows([(3, 2)], op))[0] for op in ("both", "compute", "exchange")}
    assert ends == pytest.approx({"exchange": 2.5, "compute": 2.5 + 1.75, "both": 4.25})
    # The other way round: experts of 1 s end at 2 s, 1.6 s of the exchange's 4 s are then done.
    ends = {op: Overlap.seconds_of(values, overlap_rows([(1, 4)], op))[0] for op in ("both", "compute", "exchange")}
    assert ends == pytest.approx({"compute": 2.0, "exchange": 2.0 + 2.4, "both": 4.4})


@given(st.floats(1e-3, 10), st.floats(1e-3, 10), st.floats(0, 0.9), st.floats(0, 0.9))
def test_overlap_lies_between_nothing_and_one_after_the_other_stretched(alone, moving, lost, slower):
    ends = Overlap.seconds_of({"compute_lost": lost, "exchange_lost": slower}, overlap_rows([(alone, moving)]))[0]
    assert ends >= max(alone, moving) * (1 - 1e-12)
    if lost + slower <= 1:  # together they still do at least one job's worth of work
        assert ends <= (alone + moving) * (1 + 1e-12)


def test_overlap_finds_itself_again():
    pairs = [(c, x) for c in (0.01, 0.1, 1.0) for x in (0.02, 0.2, 2.0)]
    parts = [overlap_rows(pairs, op) for op in ("both", "compute", "exchange")]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = Overlap.fit(rows, Overlap(compute_lost=0.3, exchange_lost=0.12).predict(rows))
    assert found.values() == pytest.approx({"compute_lost": 0.3, "exchange_lost": 0.12}, rel=0.01)
    with pytest.raises(CalibrationError, match="compute_seconds holds only 1"):
        Overlap.fit(overlap_rows([(1.0, 2.0)] * 8), np.full(8, 2.0))


MODELS = (
    ExpertFfn, FusedLayer, GroupedGemmKernel, NcclAllToAll, DeepEpLowLatency, DeepEpNormal, NvlinkRack, PointToPoint,
)  # fmt: skip


def asked(model, count=5):
    """Rows that a model can be asked about, whatever they mean."""
    rng = np.random.default_rng(7)
    whole = {
        "num_gpus": 8, "bytes_per_rank": 1e6, "link_bandwidth": 4e11, "memory_bandwidth": 4e12, "nic_bandwidth": 5e10, "peak_flops": 2e15,
        "sms": 132, "tokens_per_rank": 300, "num_topk": 8, "num_experts": 256, "node_num": 2, "gpus_per_node": 8, "message_bytes": 7000,
        "gpu_copies": 6, "node_copies": 1, "num_tokens": 900, "copies": 4, "port_bytes": 5e4, "size": 1e6, "rounds": 1.5, "hops": 3,
        "path_bandwidth": 1e11, "hidden_size": 2048, "inter_size": 1024, "weight_bytes": 1, "row_bytes": 1, "tile_rows": 64,
        "tile_columns": 128, "columns": 4096, "depth": 7168, "slots": 16, "ranks": 2, "experts": 8, "row_flops": 1e8, "returned_bytes": 1e7,
    }  # fmt: skip
    rows = {name: value * rng.uniform(0.5, 2.0, count) for name, value in whole.items()}
    rows |= {"narrow": np.arange(count) % 2 == 0, "ranks": np.full(count, 2), "experts": np.full(count, 8), "sms": np.full(count, 132.0)}
    for name, value in {"active": 16, "routed": 900, "tiles": 30, "empty_tiles": 9, "moved_rows": 900, "summed_rows": 900}.items():
        rows[name] = value * rng.uniform(0.5, 2.0, (count, 2))
    rows["counts"] = rng.integers(0, 90, (count, 2, 8))
    del model
    return rows


@pytest.mark.parametrize(
    "name", sorted({section.model for profile in shipped_profiles().values() for section in profile.sections.values()})
)
def test_a_slowed_section_takes_so_many_times_as_long_on_every_row(name):
    sections = [section for profile in shipped_profiles().values() for section in profile.sections.values() if section.model == name]
    model = {model.NAME: model for model in MODELS}[name]
    for section in sections[:3]:
        before = model.of_section(section).predict(asked(model))
        after = model.of_section(section.slowed(1.25)).predict(asked(model))
        assert after == pytest.approx(1.25 * before, rel=1e-9), section.names


def test_own_models_are_slowed_alike():
    rows = loop_rows([(1, 5), (100, 3)])
    assert ExpertLoop.of_section(LOOP.section().slowed(2.0)).predict(rows) == pytest.approx(2.0 * LOOP.predict(rows))
    own = OwnAllToAll(launch=1e-4, per_peer=1e-5, ramp_cost=1e-4, ramp_bytes=1e5, port_rate=1e9, fan_in=0.1)
    given_rows = {"num_gpus": np.asarray([4.0]), "port_bytes": np.asarray([1e6])}
    assert OwnAllToAll.of_section(own.section().slowed(0.5)).predict(given_rows) == pytest.approx(0.5 * own.predict(given_rows))
    work = TokenWork(launch=1e-5, element_rate=1e9)
    assert TokenWork.of_section(work.section().slowed(3.0)).predict({"elements": np.ones(1)}) == pytest.approx(
        3 * work.predict({"elements": np.ones(1)})
    )
    # What has no unit of time stays: overlap is a share.
    share = Overlap(compute_lost=0.3, exchange_lost=0.1).section()
    assert share.slowed(2.0).values() == share.values()
