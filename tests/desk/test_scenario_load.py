"""From a scenario file to a scenario."""

import os

import pytest
from scenario_texts import SMALL

from moesim.base.errors import ScenarioError
from moesim.desk.model_config import model_of
from moesim.desk.presets.models import model_preset
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.facts.scenario import Scenario
from moesim.models.capacity.dropless import Dropless
from moesim.models.capacity.megatron import Megatron
from moesim.models.placement.contiguous import Contiguous
from moesim.models.placement.round_robin import RoundRobin
from moesim.models.source.lognormal import LogNormal


def read(text=SMALL, *overrides, folder="/", check=True):
    return read_scenario(text, file="f.yaml", folder=folder, overrides=overrides, check=check)


def test_a_good_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    scenario = load_scenario(path)
    assert isinstance(scenario, Scenario)
    assert scenario.name == "small"
    assert scenario.routing == LogNormal(sigma=0.1)
    assert scenario.cluster.nic == 50e9  # 400 Gb/s
    assert scenario.model.moe_layers == (0, 1)
    assert scenario.policy.capacity == Megatron(factor=1.25)
    assert load_scenario(os.fspath(path)) == scenario


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_scenario(path) == read()


# compare


def test_a_variant_changes_only_what_it_names():
    scenario = read()
    assert scenario.compare["tight"].capacity == Megatron(factor=1.0)
    assert scenario.compare["tight"].placement == Contiguous()


def test_null_replaces_a_section():
    assert read().compare["dropless"].capacity == Dropless()


def test_another_kind_replaces_a_section_and_the_same_kind_merges():
    text = SMALL.replace("factor: 1.25}", "factor: 1.25, drop: position}") + (
        "  other: {capacity: {rule: deepspeed, factor: 2.0}, placement: round_robin}\n"
        "  same: {capacity: {rule: megatron, factor: 2.0}}\n"
        "  word: {placement: contiguous}\n"
        "  nothing:\n"
        "  1.5: {capacity: {factor: 1.5}}\n"
    )
    compare = read(text).compare
    assert compare["other"].capacity.kind == "deepspeed"
    assert compare["other"].capacity.drop == "auto"  # its own default, not the base's word
    assert compare["other"].placement == RoundRobin()
    assert compare["same"].capacity == Megatron(factor=2.0, drop="position")
    assert compare["word"] == compare["nothing"] == read(text).policy
    assert compare["1.5"].capacity.factor == 1.5


def test_a_section_that_names_no_kind_has_the_default_kind(tmp_path):
    text = (
        SMALL.replace("  placement: {kind: contiguous}\n", "  placement: {}\n")
        + "  same: {placement: {kind: contiguous}}\n  other: {placement: round_robin}\n"
    )
    scenario = read(text)
    assert scenario.policy.placement == scenario.compare["same"].placement == Contiguous()
    assert scenario.compare["other"].placement == RoundRobin()
    assert read(SMALL, "compute.launch=5 us").compute.launch == 5e-6


def test_variants_keep_their_order():
    assert list(read(SMALL + "  a: {}\n").compare) == ["dropless", "tight", "a"]


def test_an_override_of_the_policy_reaches_the_variants_and_one_of_a_variant_does_not_leave_it():
    scenario = read(SMALL, "policy.placement=round_robin", "compare.tight.capacity.factor=0.5")
    assert scenario.compare["tight"].placement == RoundRobin()
    assert scenario.compare["tight"].capacity.factor == 0.5
    assert scenario.policy.capacity.factor == 1.25


def test_a_variant_of_a_section_that_an_override_took_away_means_the_section_of_the_file():
    scenario = read(SMALL, "policy.capacity=null")
    assert scenario.policy.capacity == Dropless()
    assert scenario.compare["tight"].capacity == Megatron(factor=1.0)


# overrides


@pytest.mark.parametrize(
    ("override", "reach", "expected"),
    [
        ("steps=7", lambda s: s.steps, 7),
        ("policy.capacity=null", lambda s: s.policy.capacity, Dropless()),
        ("policy.capacity=", lambda s: s.policy.capacity, Dropless()),
        ("policy.capacity.factor=1e0", lambda s: s.policy.capacity.factor, 1.0),
        ("policy.capacity={rule: megatron, factor: 3}", lambda s: s.policy.capacity, Megatron(factor=3.0)),
        ("name='a=b'", lambda s: s.name, "a=b"),
        ("cluster.nic=100 Gb/s", lambda s: s.cluster.nic, 12.5e9),
        ("schedule.kind=sequential", lambda s: s.schedule.kind, "sequential"),
        ("model.top_k=4", lambda s: s.model.top_k, 4),
        ("model.moe_layers=[1]", lambda s: s.model.moe_layers, (1,)),
        ("compare.new.placement=round_robin", lambda s: s.compare["new"].placement, RoundRobin()),
    ],
)
def test_overrides(override, reach, expected):
    alone = SMALL[: SMALL.index("compare:")]
    assert reach(read(alone, override)) == expected


def test_an_override_goes_through_a_bare_kind_and_through_null():
    text = SMALL.replace("routing: {kind: lognormal, sigma: 1e-1}", "routing: lognormal")
    assert read(text, "routing.sigma=2").routing == LogNormal(sigma=2.0)
    text = SMALL.replace("{rule: megatron, factor: 1.25}", "null").replace("tight: {capacity: {factor: 1.0}}", "same: {}")
    assert read(text, "policy.capacity.rule=megatron", "policy.capacity.factor=2").policy.capacity == Megatron(factor=2.0)


def test_an_override_finds_keys_that_hold_dots():
    text = SMALL + "  cf-1.5: {capacity: {factor: 1.5}}\n"
    assert read(text, "compare.cf-1.5.capacity.factor=1.6").compare["cf-1.5"].capacity.factor == 1.6


def test_an_override_takes_the_longest_key_that_holds_its_dots():
    # Both names begin alike: the words after the shorter one are its keys only if no longer name is there.
    text = SMALL + "  cf.1: {capacity: {factor: 1.0}}\n  cf.1.5: {capacity: {factor: 1.5}}\n"
    changed = read(text, "compare.cf.1.5.capacity.factor=1.6", "compare.cf.1.capacity.factor=1.1").compare
    assert (changed["cf.1"].capacity.factor, changed["cf.1.5"].capacity.factor) == (1.1, 1.6)


def test_later_overrides_win():
    assert read(SMALL, "steps=7", "steps=8").steps == 8


# model


def with_model(text):
    head, rest = SMALL.split("model:\n")
    return f"{head}model: {text}\n{rest[rest.index('cluster:') :]}"


def test_a_preset_model():
    assert read(with_model("{preset: olmoe-1b-7b}")).model == model_preset("olmoe-1b-7b")
    assert read(with_model("olmoe-1b-7b")).model == model_preset("olmoe-1b-7b")


def test_inline_fields_win_over_the_preset():
    preset = model_preset("olmoe-1b-7b")
    model = read(with_model("{preset: olmoe-1b-7b, top_k: 4, attention: {heads: 99}}")).model
    assert (model.top_k, model.experts) == (4, preset.experts)
    assert model.attention.heads == 99
    assert model.attention.projection_parameters == preset.attention.projection_parameters


MIXTRAL = (
    '{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, '
    '"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_experts_per_tok": 2, '
    '"num_local_experts": 8, "vocab_size": 32000, "torch_dtype": "bfloat16"}'
)


def test_a_model_from_a_config_beside_the_scenario(tmp_path):
    import json

    (tmp_path / "config.json").write_text(MIXTRAL)
    scenario = read(with_model("{config: config.json, layers: 4, moe_layers: [0, 1, 2, 3]}"), folder=tmp_path)
    assert scenario.model.experts == 8
    assert scenario.model.layers == 4
    assert model_of(json.loads(MIXTRAL)).layers == 32


# files and plug-ins

POLICY_FILE = """
from dataclasses import dataclass
from moesim.base.fields import Count, File
from moesim.base.registry import register
from moesim.models.placement.contiguous import Contiguous

@register("placement", "mine_{name}")
@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    \"\"\"Place as always.\"\"\"
    table: File
    tables: tuple[File, ...] = ()
    depth: Count = 1

    def begin(self, setting):
        return Contiguous().begin(setting)
"""


def test_plugins_are_loaded_first_and_their_files_are_relative_to_the_scenario(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine_a.py").write_text(POLICY_FILE.replace("{name}", "a"))
    (tmp_path / "t.csv").write_text("x")
    text = SMALL.replace("{kind: contiguous}", "{kind: mine_a, table: lib/../t.csv, tables: [t.csv]}") + "plugins: [lib/mine_a.py]\n"
    text = text.replace("tight: {", "deep: {placement: {depth: 2}}\n  tight: {")
    scenario = read(text, folder=tmp_path)
    assert scenario.policy.placement.table == str(tmp_path / "t.csv")
    assert scenario.policy.placement.tables == (str(tmp_path / "t.csv"),)
    assert scenario.compare["deep"].placement.depth == 2
    assert scenario.plugins == (str(tmp_path / "lib" / "mine_a.py"),)


def test_a_path_on_the_command_line_may_be_relative_to_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "mine_b.py").write_text(POLICY_FILE.replace("{name}", "b"))
    here = tmp_path / "here"
    here.mkdir()
    (here / "t.csv").write_text("x")
    monkeypatch.chdir(here)
    text = SMALL + "plugins: [mine_b.py]\n"
    scenario = read(text, "policy.placement={kind: mine_b, table: t.csv}", folder=tmp_path)
    assert scenario.policy.placement.table == str(here / "t.csv")


def test_files_need_not_exist_for_a_scenario_that_is_only_looked_at(tmp_path):
    text = SMALL.replace("{kind: lognormal, sigma: 1e-1}", "{kind: recorded, trace: gone.npz}")
    assert read(text, folder=tmp_path, check=False).routing.trace == str(tmp_path / "gone.npz")
    with pytest.raises(ScenarioError, match=r"f.yaml:18:34: routing.trace: gone.npz: there is no such file"):
        read(text, folder=tmp_path)
