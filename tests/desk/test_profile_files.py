"""Profiles: the same in memory, in a file and in a scenario; and what is wrong with one is told."""

import numpy as np
import pytest

from moesim.base.errors import CalibrationError, PluginError
from moesim.desk.content import read_content
from moesim.desk.presets.profiles import profile_path, profile_preset, profile_presets
from moesim.desk.profile_files import parse_profile, profile_text, read_profile, write_profile
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.profile import WEAK, Parameter, Profile, Section
from moesim.facts.profile_data import only, plain_profile, profile_of


def parameter(name="latency", value=1.5e-6, **more):
    return Parameter(**{"name": name, "value": value, "unit": "s", "basis": "fitted", "source": 't: "x", é', "date": "2026-11", **more})


def made():
    section = Section(
        model="m",
        parameters=(parameter(error=1e-8), parameter("rate", 3e11, unit="B/s", basis="datasheet")),
        covariance=np.diag([1e-4, 0.0]),
        fitted_range={"bytes": (1.0, 2e9)},
        rows=5,
        scatter={"": 0.1, "decode": 0.2},
        source="a table",
    )
    return Profile(name="p", gpu="h200-sxm", made="2026-11", sections={"expert.a": section, "nccl": section}, note="beware: 'x'")


def test_a_profile_reads_back_equal(tmp_path):
    profile = made()
    assert profile_of(plain_profile(profile)) == profile
    text = profile_text(profile)
    assert parse_profile(text, "p.yaml") == profile
    assert profile_text(parse_profile(text, "p.yaml")) == text
    write_profile(tmp_path / "p.yaml", profile)
    assert read_profile(tmp_path / "p.yaml") == profile


def test_a_scenario_takes_only_the_sections_that_a_plugin_asks_for(tmp_path):
    write_profile(tmp_path / "p.yaml", made())
    content, problems = read_content("profile/expert.", str(tmp_path / "p.yaml"), {})
    assert problems == []
    assert content == only(made(), "expert.")
    assert list(content.sections) == ["expert.a"]
    content, problems = read_content("profile/exchange.", str(tmp_path / "p.yaml"), {})
    assert content is None
    assert "no section that begins with 'exchange.'" in str(problems[0])
    content, problems = read_content("profile/x", str(tmp_path / "none.yaml"), {})
    assert "no such file" in str(problems[0])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("", ""), None),
        (("schema: 1", "schema: 9"), "schema 9"),
        (("value: 1.5e-06", "value: fast"), r"parameters\.0\.value: 'fast' is not a finite number"),
        (("basis: fitted", "basis: fited"), "unknown basis 'fited'; did you mean 'fitted'"),
        (("gpu:", "gp:"), "unknown key 'gp'; did you mean 'gpu'"),
        (("rows: 5", "rows: -5"), "rows: -5 is not"),
        (("[0.0001, 0.0]", "[0.0001]"), "rows differ in length"),
        (("[0.0001, 0.0]", "[-0.0001, 0.0]"), "negative variance"),
        (("[0.0001, 0.0]", "[0.0001, 5.0]"), "not symmetric"),
        (("bytes: [1.0, 2000000000.0]", "bytes: [3.0, 2.0]"), "the range of bytes is from 3"),
        (("name: rate", "name: latency"), "stands twice"),
        (("scale: log", "scale: lg"), "unknown scale 'lg'; did you mean 'log'"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(change, why):
    text = profile_text(made()).replace(*change, 1)
    if why is None:
        parse_profile(text, "p.yaml")
        return
    with pytest.raises(CalibrationError, match=why):
        parse_profile(text, "p.yaml")


def test_what_is_no_profile_is_told(tmp_path):
    for text, why in (("", "empty"), ("- 1\n", "expected keys"), ("name: x\n", "'schema' is missing"), ("a: [\n", "p.yaml:")):
        with pytest.raises(CalibrationError, match=why):
            parse_profile(text, "p.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        read_profile(tmp_path / "b.yaml")


def test_draws_go_no_farther_than_the_fit_can_tell():
    # The sum of the two logarithms is all but free, with a deviation of 10; their difference is known to 0.01.
    covariance = 50.0 * np.array([[1.0, 1.0], [1.0, 1.0]]) + 5e-5 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    section = Section(model="m", parameters=(parameter(), parameter("rate", 3e11)), covariance=covariance)
    steps = np.log([[item["latency"] / 1.5e-6, item["rate"] / 3e11] for item in section.draws(500, np.random.default_rng(3))])
    along, across = steps @ np.array([1.0, 1.0]) / np.sqrt(2.0), steps @ np.array([1.0, -1.0]) / np.sqrt(2.0)
    assert np.abs(along).max() == pytest.approx(WEAK)
    assert across.std() == pytest.approx(0.01, rel=0.15)


def test_draws_have_the_covariance_and_keep_what_was_not_fitted():
    covariance = np.array([[0.0025, 0.000625], [0.000625, 0.000625]])
    section = Section(
        model="m", parameters=(parameter(), parameter("rate", 3e11), parameter("held", 2.0)), covariance=np.pad(covariance, (0, 1))
    )
    drawn = list(section.draws(4000, np.random.default_rng(3)))
    logs = np.log([[item["latency"], item["rate"]] for item in drawn])
    assert np.cov(logs.T) == pytest.approx(covariance, rel=0.12)
    assert logs.mean(axis=0) == pytest.approx(np.log([1.5e-6, 3e11]), abs=0.005)
    assert {item["held"] for item in drawn} == {2.0}
    plain = Section(model="m", parameters=(parameter(),), covariance=[[(1e-6) ** 2]], scale="plain")
    values = np.array([item["latency"] for item in plain.draws(4000, np.random.default_rng(3))])
    assert values.std() == pytest.approx(1e-6, rel=0.15)
    assert values.min() >= 0
    sure = Section(model="m", parameters=(parameter(),))
    assert list(sure.draws(2, np.random.default_rng(0))) == [{"latency": 1.5e-6}] * 2


def test_rows_outside_the_fitted_range_are_seen():
    section = made().sections["nccl"]
    assert section.outside({"bytes": np.array([0.5, 1.0, 2e9, 2.1e9]), "other": np.zeros(4)}).tolist() == [True, False, False, True]


def test_parameters_that_are_none_are_refused():
    with pytest.raises(ValueError, match="nan is not a finite"):
        parameter(value=float("nan"))
    with pytest.raises(ValueError, match="the error -1"):
        parameter(error=-1.0)


def test_shipped_profiles_are_of_gpus_that_moesim_knows():
    assert {"h200-sxm", "h100-sxm", "a100-sxm-80", "gb200-nvl72", "gb300-nvl72", "b200-sxm"} <= set(profile_presets())
    for name in profile_presets():
        profile = profile_preset(name)
        assert profile.name == name
        assert profile.gpu in gpu_presets()
        assert profile_text(profile) == profile_path(name).read_text(encoding="utf-8")
        for section in profile.sections.values():
            assert section.parameters
            assert all(item.source and item.date for item in section.parameters)
            # What follows from another GPU never says that it was fitted.
            assert not section.carried_from or all(item.basis in {"datasheet", "assumed"} for item in section.parameters)
    with pytest.raises(PluginError, match="unknown profile 'gb20-nvl72'; did you mean 'gb200-nvl72'"):
        profile_path("gb20-nvl72")
