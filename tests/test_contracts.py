"""Every registered plug-in keeps the contract of its slot, as anybody can check with moesim.testing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moesim.testing
from moesim.base.registry import SLOTS, kinds
from moesim.desk.presets.profiles import profile_preset
from moesim.facts.profile import Profile
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.compute.looped import FORMATS
from moesim.models.compute.table import ExpertTimes
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.placement.file import WrittenSlots
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.wiring import wiring_of
from moesim.testing import tiny_settings


def _ours() -> dict[tuple[str, str], type]:
    return {(slot, kind): cls for slot in SLOTS for kind, cls in kinds(slot).items() if cls.__module__.startswith("moesim.")}


PLUGINS = _ours()

LOOPED = Profile(
    name="mine",
    gpu="a CPU",
    made="2026-11",
    sections={
        f"expert_loop.loop.{dtype}": ExpertLoop(launch=1e-5, per_expert=1e-5, memory_rate=1e10, compute_rate=5e10, sharpness=2.0).section()
        for dtype in FORMATS.values()
    },
)

# Instances for kinds that cannot be made without arguments, or whose defaults would not show what they do in a short check.
EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("compute", "calibrated"): {"fitted": profile_preset("h200-sxm")},
    ("compute", "looped"): {"fitted": LOOPED},
    ("compute", "table"): {"experts": ExpertTimes(rows=(1, 4, 64), forward=(1e-3, 9e-4, 5e-3))},
    ("source", "recorded"): {"trace": "tiny.npz"},
    ("source", "imbalance"): {"workload": "W2_hot_rank"},
    ("capacity", "megatron"): {"factor": 1.25},
    ("capacity", "scheduled"): {"of": kinds("capacity")["megatron"](factor=1.0), "factor": ((0, 2.0), (3, 1.0))},
    ("placement", "biased"): {"redundant": 4, "window": 3, "interval": 4},
    ("placement", "eplb"): {"redundant": 4, "window": 3, "interval": 4},
    ("placement", "eplb_sglang"): {"redundant": 4, "window": 3, "interval": 4, "layers_per_chunk": 1},
    ("placement", "eplb_trtllm"): {"redundant": 4, "layer_updates_per_iter": 1},
    ("placement", "eplb_vllm"): {"redundant": 4, "window": 3, "interval": 4},
    ("placement", "greedy"): {"redundant": 4, "window": 3, "interval": 4},
    ("placement", "topology"): {"redundant": 4, "window": 3, "interval": 4, "sources": "even"},
    ("gate", "hash"): {"words": "zipf"},
    ("placement", "file"): {
        "slots": WrittenSlots(source="tiny.json", format="sglang", rows=("0 1 2 7 3 4 5 0 6 7 0 1", "7 6 5 4 3 2 1 0 0 0 0 0"))
    },
    ("topology", "graph"): {"wiring": wiring_of(NvlinkNodes(nodes=3, gpus_per_node=2, nodes_per_leaf=1).graph())},
}
# What a check needs besides the instance.
KEYWORDS: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
    ("source", "recorded"): lambda: {"settings": [_with_trace(setting) for setting in tiny_settings()]},
}


def _with_trace(setting: Setting) -> Setting:
    """A setting whose every trace is a recording of its own model, 100 tokens long."""
    model = setting.model
    layers = len(model.moe_layers)
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((100, layers, model.experts))
    trace = Trace(
        name="tiny.npz",
        digest="0" * 64,
        layers=layers,
        experts=model.experts,
        top_k=model.top_k,
        ids=np.argsort(-scores, axis=-1)[..., : model.top_k].astype(np.int32),
    )
    return dataclasses.replace(setting, read_trace=lambda path, **keys: trace)


@pytest.mark.parametrize(("slot", "kind"), PLUGINS)
def test_plugin_keeps_the_contract_of_its_slot(slot: str, kind: str) -> None:
    check = getattr(moesim.testing, f"check_{slot}")
    check(PLUGINS[slot, kind](**EXAMPLES.get((slot, kind), {})), **KEYWORDS.get((slot, kind), dict)())


def test_every_kind_can_be_made_or_has_an_example() -> None:
    needy = {
        key
        for key, cls in PLUGINS.items()
        if any(f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls))
    }
    assert needy <= set(EXAMPLES), f"add an example for {sorted(needy - set(EXAMPLES))}"
    stale = (set(EXAMPLES) | set(KEYWORDS)) - set(PLUGINS)
    assert not stale, f"there is no such plug-in: {sorted(stale)}"


def test_every_slot_has_a_check_and_a_plugin() -> None:
    assert {f"check_{slot}" for slot in SLOTS} <= set(moesim.testing.__all__)
    assert {slot for slot, _ in PLUGINS} == set(SLOTS)


@pytest.mark.parametrize(("slot", "kind"), PLUGINS)
def test_definition_is_one_full_sentence(slot: str, kind: str) -> None:
    # The first line is what `moesim list` and the report show.
    first = (PLUGINS[slot, kind].__doc__ or "").strip().splitlines()[0]
    assert first[0].isupper() or not first[0].isalpha() or slot == "metric"
    assert first.rstrip().endswith(".")
