"""GPU presets: the numbers, the traps of public figures, and the field type."""

import pytest
from pydantic import TypeAdapter, ValidationError

from moesim.base.errors import PluginError
from moesim.base.fields import Preset
from moesim.facts.evidence import STRENGTH
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_figures import EXPERIMENTS
from moesim.facts.gpu_presets import GpuField, achievable, figures, gpu_presets

GIB = 2**30

# Peaks of dense arithmetic and one direction of each link, written down again by hand from the data sheets:
# Tflop/s in bf16 and fp8, memory (GiB), TB/s of memory, GB/s of NVLink, GB/s of NIC, SMs.
EXPECTED = {
    "a100-sxm-80": (312, None, 80, 2.039, 300, 25, 108),
    "h100-sxm": (989, 1978, 80, 3.35, 450, 50, 132),
    "h200-sxm": (989, 1978, 141, 4.8, 450, 50, 132),
    "h800-sxm": (989, 1978, 80, 3.35, 200, 50, 132),
    "h20": (148, 296, 96, 4.0, 450, 50, 78),
    "b200-sxm": (2250, 4500, 180, 7.7, 900, 50, 148),
    "gb200-nvl72": (2500, 5000, 189_471 / 1024, 8.0, 900, 50, 148),
    "gb300-nvl72": (2500, 5000, 284_208 / 1024, 8.0, 900, 100, 148),
    "l40s": (362.05, 733, 46_068 / 1024, 0.864, 32, 25, 142),
    "mi300x": (1307, 2615, 192, 5.3, 448, 50, 304),
}
NAMES = sorted(EXPECTED)


def test_every_preset_is_expected_and_sorted():
    assert list(gpu_presets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_those_of_the_data_sheet(name):
    bf16, fp8, memory, bandwidth, nvlink, nic, sms = EXPECTED[name]
    gpu = gpu_presets()[name]
    assert gpu.name == name
    assert gpu.flops["bf16"] == pytest.approx(bf16 * 1e12)
    assert gpu.flops.get("fp8") == (None if fp8 is None else pytest.approx(fp8 * 1e12))
    assert gpu.memory == pytest.approx(memory * GIB)
    assert gpu.memory_bandwidth == pytest.approx(bandwidth * 1e12)
    assert gpu.nvlink == pytest.approx(nvlink * 1e9)
    assert gpu.nic == pytest.approx(nic * 1e9)
    assert gpu.sms == sms


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_its_peak_figures(name):
    gpu = gpu_presets()[name]
    peak = {figure.quantity: figure.value for figure in figures(name) if figure.kind == "peak"}
    flops = {f"flops.{dtype}": value for dtype, value in gpu.flops.items()}
    scalars = {quantity: getattr(gpu, quantity) for quantity in ("memory", "memory_bandwidth", "nvlink", "nic", "sms")}
    assert peak == flops | scalars


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_what_it_is(name):
    units = {"flops": "flop/s", "memory": "B", "memory_bandwidth": "B/s", "nvlink": "B/s", "nic": "B/s", "mesh": "B/s", "sms": "1"}
    seen = set()
    for figure in figures(name):
        quantity = figure.quantity.split(".")[0]
        assert figure.unit == units[quantity]
        assert figure.direction == ("one way" if quantity in {"nvlink", "nic", "mesh"} else "")
        assert figure.density == ("dense" if quantity == "flops" else "")
        assert figure.basis in STRENGTH
        assert figure.kind in {"peak", "achievable"}
        assert figure.basis != "datasheet" if figure.kind == "achievable" else figure.basis in {"datasheet", "assumed"}
        assert figure.experiment in EXPERIMENTS if figure.kind == "achievable" else not figure.experiment
        assert figure.source
        assert figure.date
        assert (figure.quantity, figure.kind) not in seen
        seen.add((figure.quantity, figure.kind))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_measured_exceeds_its_peak(name):
    gpu = gpu_presets()[name]
    peaks = {f"flops.{dtype}": value for dtype, value in gpu.flops.items()}
    peaks |= {"memory": gpu.memory, "memory_bandwidth": gpu.memory_bandwidth, "nvlink": gpu.nvlink, "nic": gpu.nic}
    peaks["mesh"] = gpu.nvlink / 7
    for figure in figures(name):
        if figure.kind == "achievable":
            assert 0 < figure.value < peaks[figure.quantity]


def test_links_are_one_way_and_arithmetic_is_dense():
    # NVIDIA's H100 sheet says 900 GB/s (both directions) and 1979 Tflop/s in bf16 (sparse): each is twice what a model may use.
    gpu = gpu_presets()["h100-sxm"]
    assert gpu.nvlink == 450e9
    assert gpu.flops["bf16"] < 1000e12
    # The trimmed export part differs from the H100 in its links only.
    assert gpu_presets()["h800-sxm"].nvlink == 200e9
    assert "fp8" not in gpu_presets()["a100-sxm-80"].flops
    assert gpu_presets()["b200-sxm"].flops["fp4"] == 9000e12


def test_achievable_figures_are_the_measured_ones():
    # Bus bandwidth 311.83 GB/s of 450: nccl-tests all-to-all, 8 GPUs, 512 MiB per rank.
    nvlink = achievable("h200-sxm", "nvlink")
    assert nvlink is not None
    assert nvlink.value == pytest.approx(311.83e9, rel=1e-3)
    # 256 experts of 3 x 7168 x 2048 fp8 weights in 2644.91 us is 0.888 of 4.8 TB/s.
    memory = achievable("h200-sxm", "memory_bandwidth")
    assert memory is not None
    assert memory.value == pytest.approx(256 * 3 * 7168 * 2048 / 2644.91e-6, rel=1e-3)
    assert memory.value / gpu_presets()["h200-sxm"].memory_bandwidth == pytest.approx(0.888, abs=1e-3)
    # 131072 tokens of 7168 fp8 elements and 56 scales; a token of 8 choices stays below its own node with probability 2 ** -8 or so.
    nic = achievable("h100-sxm", "nic")
    assert nic is not None
    assert nic.value == pytest.approx(131072 * (7168 + 56 * 4) * 0.997 / 21931e-6, rel=2e-3)
    # The table counts all that arrives; an eighth of it never leaves its GPU.
    combine = achievable("h800-sxm", "nvlink")
    assert combine is not None
    assert combine.value == 158e9 * 7 / 8
    assert achievable("mi300x", "nvlink") is None


def test_no_figure_is_called_measured_for_a_part_it_was_not_measured_on():
    # The source of these rows labels H100 and H200 alike, so for neither is the card's figure a measurement of that part.
    for name in ("h100-sxm", "h200-sxm"):
        nic = achievable(name, "nic")
        assert nic is not None
        assert nic.basis == "assumed"
    for name in NAMES:
        for figure in figures(name):
            if figure.basis == "measured" and "systems/data/" in figure.source:
                assert f"systems/data/{name.split('-')[0]}" in figure.source


def test_unknown_gpu_names_the_nearest():
    with pytest.raises(PluginError, match="unknown GPU 'h100'; did you mean 'h100-sxm'"):
        figures("h100")
    with pytest.raises(PluginError, match="unknown GPU"):
        achievable("voodoo", "nvlink")


def test_a_field_takes_a_name_or_a_mapping():
    adapter = TypeAdapter(GpuField)
    assert adapter.validate_python("h100-sxm") == gpu_presets()["h100-sxm"]
    spelled = adapter.validate_python(
        {
            "name": "mine",
            "flops": {"bf16": "989 Tflop/s"},
            "memory": "80 GiB",
            "memory_bandwidth": "3.35 TB/s",
            "nvlink": "450 GB/s",
            "nic": "400 Gb/s",
            "sms": 132,
        }
    )
    assert spelled == Gpu(name="mine", flops={"bf16": 989e12}, memory=80 * GIB, memory_bandwidth=3.35e12, nvlink=450e9, nic=50e9, sms=132)
    with pytest.raises(ValidationError, match="unknown preset 'h100'; did you mean 'h100-sxm'"):
        adapter.validate_python("h100")
    with pytest.raises(ValidationError, match="memory_bandwidth"):
        adapter.validate_python({"name": "mine"})


@pytest.mark.parametrize("name", NAMES)
def test_l13_a_preset_reads_back_from_its_text(name):
    marker = Preset(gpu_presets, Gpu)
    assert marker.text(marker.parse(name)) == name
    # What merely carries the name of a preset is spelled out, not passed off as it.
    other = Gpu(name=name, flops={"bf16": 1.0}, memory=1.0, memory_bandwidth=1.0, nvlink=1.0, nic=1.0, sms=1)
    assert marker.text(other) is other
    assert marker.parse(marker.text(other)) == other


def test_the_table_handed_out_is_a_copy():
    gpu_presets().clear()
    assert list(gpu_presets()) == NAMES
