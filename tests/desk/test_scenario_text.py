"""Writing a scenario back: law L13, and digests."""

import dataclasses

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_texts import SMALL

from moesim import __version__
from moesim.base.registry import kinds, plugin
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.scenario_text import digest, dump
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.model import Attention, MoeModel
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.capacity.megatron import Megatron
from moesim.models.source.lognormal import LogNormal
from moesim.models.topology.nvlink_nodes import NvlinkNodes

# Any text that UTF-8 can hold, with words that YAML 1.1 or 1.2 would take for something else.
texts = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable),
    st.sampled_from(
        [
            "no",
            "1e-6",
            "12:30",
            "010",
            "0x1F",
            "~",
            "null",
            "<<",
            "=",
            "2024-01-01",
            ".inf",
            "true",
            "- a",
            "a: b",
            "#",
            "@",
            "1_000",
            "é",
            "\x85",
        ]
    ),
).filter(str.strip)
positive = st.floats(1.0, 1e15)
seconds = st.one_of(st.just(0.0), st.floats(1e-12, 1e3))


def maybe(strategy):
    return st.none() | strategy


clusters = st.builds(
    NvlinkNodes,
    gpu=st.sampled_from([*gpu_presets().values(), dataclasses.replace(gpu_presets()["h100-sxm"], name="mine", memory=1e9 + 1 / 3)]),
    nodes=st.integers(1, 3),
    nvlink=maybe(positive),
    nvlink_latency=maybe(seconds),
    nic=maybe(positive),
    oversubscription=st.floats(1.0, 8.0),
)
policies = st.builds(
    Policy,
    capacity=st.one_of(
        st.builds(Megatron, factor=st.floats(1e-3, 1e3), drop=st.sampled_from(["probs", "position"])),
        st.builds(plugin("capacity", "deepspeed"), min_capacity=st.integers(0, 9), use_rts=st.booleans()),
        st.builds(plugin("capacity", "dropless")),
    ),
    placement=st.sampled_from([plugin("placement", "contiguous")(), plugin("placement", "round_robin")()]),
)
models = st.builds(
    MoeModel,
    name=texts,
    layers=st.just(9),
    moe_layers=st.sets(st.integers(0, 8), min_size=1).map(lambda found: tuple(sorted(found))),
    hidden=st.integers(1, 9999),
    experts=st.integers(8, 64),
    top_k=st.integers(1, 8),
    expert_width=st.integers(1, 9999),
    dispatch_width=st.integers(1, 9999),
    routed_scale=positive,
    notes=st.lists(texts, max_size=2).map(tuple),
    attention=st.builds(
        Attention,
        heads=st.integers(1, 99),
        score_width=positive,
        projection_parameters=st.integers(0, 2**40),
        cache_bytes_per_token=st.integers(0, 2**40),
    ),
)
scenarios = st.builds(
    Scenario,
    name=texts,
    seed=st.integers(0),
    steps=st.integers(4, 9),
    warmup=st.integers(0, 3),
    model=models,
    cluster=clusters,
    parallel=st.builds(Parallel, ep=st.integers(1, 64)),
    workload=st.builds(Workload, phase=st.sampled_from(["training", "decode"]), tokens_per_gpu=st.integers(1, 9999)),
    routing=st.builds(LogNormal, sigma=st.floats(0.0, 9.0)),
    policy=policies,
    compare=st.dictionaries(texts, policies, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(scenarios)
def test_l13_a_scenario_that_is_written_loads_back_equal(scenario):
    text = dump(scenario)
    again = read_scenario(text, file="f", folder="/", check=False)
    assert again == scenario
    assert list(again.compare) == list(scenario.compare)
    assert dump(again) == text
    assert digest(again) == digest(scenario)


def small(*overrides, text=SMALL, folder="/"):
    return read_scenario(text, file="f", folder=folder, overrides=overrides, check=False)


def test_every_default_is_written_out_with_units_and_the_kind_first():
    text = dump(small())
    assert text.startswith(f"# Resolved by moesim {__version__}")
    data = yaml.safe_load(text)
    assert next(iter(data["cluster"].items())) == ("kind", "nvlink_nodes")
    assert data["cluster"]["nic"] == "50 GB/s"  # 400 Gb/s
    assert data["cluster"]["gpu"] == "h100-sxm"
    assert data["policy"]["capacity"] == {"rule": "megatron", "factor": 1.25, "drop": "probs", "pad_to_capacity": False}
    assert data["compare"]["dropless"]["capacity"] == {"rule": "dropless"}
    for section, slot in (("exchange", "exchange"), ("compute", "compute"), ("schedule", "schedule")):
        written = dict(data[section])
        names = {item.name for item in dataclasses.fields(plugin(slot, written.pop("kind")))}
        assert set(written) == names
    assert set(data["model"]) == {item.name for item in dataclasses.fields(MoeModel)}


def test_text_that_only_one_version_of_yaml_takes_for_text_is_quoted():
    # 1e-6 is a number in YAML 1.2 only, no is false in YAML 1.1 only: readers of either version must see text.
    for name in ("1e-6", "no", "12:30", "0o7"):
        first = next(line for line in dump(dataclasses.replace(small(), name=name)).split("\n") if line.startswith("name"))
        assert first == f"name: '{name}'"


def test_paths_are_relative_to_the_folder_of_the_text(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "in" / "t.npz").write_bytes(b"x")
    (tmp_path / "in" / "nothing_plugin.py").write_text("")
    text = SMALL.replace("{kind: lognormal, sigma: 1e-1}", "{kind: recorded, trace: t.npz}") + "plugins: [nothing_plugin.py]\n"
    scenario = small(text=text, folder=tmp_path / "in")
    written = dump(scenario, folder=tmp_path / "out" / "run")
    assert "trace: ../../in/t.npz\n" in written
    assert "plugins: [../../in/nothing_plugin.py]\n" in written
    (tmp_path / "out" / "run" / "scenario.yaml").write_text(written)
    assert load_scenario(tmp_path / "out" / "run" / "scenario.yaml", check=False) == scenario
    assert f"trace: {tmp_path}/in/t.npz\n" in dump(scenario)


def test_a_digest_changes_with_the_meaning_only(tmp_path):
    recorded = SMALL.replace("{kind: lognormal, sigma: 1e-1}", "{kind: recorded, trace: t.npz}")
    base = digest(small(text=recorded))
    assert len(base) == 64
    assert digest(small(text=recorded, folder=tmp_path)) == base  # the same trace elsewhere
    assert digest(small(text=recorded.replace("400 Gb/s", "50 GB/s"))) == base
    reordered = recorded.replace("seed: 1\nsteps: 3\n", "steps: 3\nseed: 1\n")
    assert digest(small(text=reordered)) == base
    changes = [
        "seed=2",
        "name=other",
        "policy.capacity.factor=1.3",
        "routing.deal=recorded",
        "compare.x={}",
        "model.top_k=3",
        "cluster.nodes=3",
    ]
    digests = {digest(small(change, text=recorded)) for change in changes}
    assert len(digests | {base}) == len(changes) + 1
    swapped = recorded.replace("  dropless: {capacity: null}\n", "") + "  dropless: {capacity: null}\n"
    assert digest(small(text=swapped)) != base  # the first variant is the baseline


ONE_OF_TWO = {("topology", "graph"), ("compute", "table")}
"""Plug-ins that need a file or what would be in it: each key has a default, but one must be given."""


def test_every_plugin_that_needs_no_key_is_written_and_read_back():
    section = {"topology": "cluster", "source": "routing", "exchange": "exchange", "compute": "compute", "schedule": "schedule"}
    tried = 0
    for slot, key in section.items():
        for kind, cls in kinds(slot).items():
            if (slot, kind) not in ONE_OF_TWO and all(
                item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
                for item in dataclasses.fields(cls)
            ):
                scenario = dataclasses.replace(small(), **{key: cls()})
                assert read_scenario(dump(scenario), file=kind, folder="/", check=False) == scenario
                tried += 1
    assert tried >= 5
