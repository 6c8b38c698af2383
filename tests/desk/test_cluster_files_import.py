"""Machines that other tools describe: links and bandwidths worked out by hand from each sample, and every way a file can be wrong."""

from collections import Counter
from pathlib import Path

import pytest

from moesim.base.errors import Problem
from moesim.desk.cluster_files.host import Card, share_out
from moesim.desk.cluster_files.read import read_wiring
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.topology.graph import GraphTopology
from moesim.models.topology.wiring import Wiring
from moesim.testing import check_topology

SAMPLES = Path(__file__).parent / "fabrics"
GIGA = 1e9


def wiring(name: str) -> Wiring:
    found, problems = read_wiring(str(SAMPLES / name), {})
    assert problems == []
    assert found is not None
    return found


def built(name: str, **keys) -> Cluster:
    topology = GraphTopology(wiring=wiring(name), **keys)
    check_topology(topology)
    return topology.build()


def names(cluster: Cluster, source: int, destination: int) -> list[str]:
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def slowest(cluster: Cluster, source: int, destination: int) -> float:
    return float(cluster.bandwidth[cluster.route(source, destination)].min()) / GIGA


def test_nvswitch_box_from_nvidia_smi():
    # 8 GPUs see 18 NVLinks to each of 7 others, but have 18 in all: a switch. 18 x 25 GB/s x 0.69 = 310.5 GB/s.
    cluster = built("h100-nvswitch.txt")
    assert names(cluster, 0, 7) == ["nvlink:gpu:0>nvswitch:0", "nvlink:nvswitch:0>gpu:7"]
    assert slowest(cluster, 0, 7) == pytest.approx(310.5)
    # Both ways: 8 NVLinks, 8 GPUs and 8 cards on 8 PCIe switches, 8 uplinks of switches, 1 pair of sockets. Two cards are nobody's.
    assert Counter(cluster.link_class) == {"nvlink": 16, "pcie": 48, "socket": 2}
    assert cluster.nodes == 1


def test_copies_of_the_nvswitch_box_use_one_card_for_each_gpu():
    cluster = built("h100-nvswitch.txt", nodes=2)
    assert names(cluster, 3, 13) == [
        "n0/pcie:gpu:3>pcie:3",
        "n0/pcie:pcie:3>nic:3",
        "nic-out:3",
        "nic-in:13",
        "n1/pcie:nic:5>pcie:5",
        "n1/pcie:pcie:5>gpu:5",
    ]
    assert slowest(cluster, 3, 13) == pytest.approx(44.0)  # 400 Gb/s x 0.88; PCIe 5 x16 carries 48
    assert names(cluster, 8, 9) == ["n1/nvlink:gpu:0>nvswitch:0", "n1/nvlink:nvswitch:0>gpu:1"]


def test_bridged_pairs_from_nvidia_smi():
    # A100: 12 NVLinks between two GPUs, which is all that they have, 300 GB/s x 0.65; everything else over PCIe 4 (24 GB/s) and sockets.
    cluster = built("a100-bridges.txt", gpu=gpu_presets()["a100-sxm-80"])
    assert names(cluster, 0, 1) == ["nvlink:gpu:0>gpu:1"]
    assert slowest(cluster, 0, 1) == pytest.approx(195.0)
    # GPUs 0 and 1 share a PCIe switch with NIC0; GPUs 2 and 3 have no card near, and their NVLinks hide what they share.
    assert names(cluster, 0, 2) == ["pcie:gpu:0>pcie:0", "pcie:pcie:0>numa:0", "pcie:numa:0>gpu:2"]
    assert slowest(cluster, 0, 2) == 24.0
    assert names(cluster, 2, 6)[1] == "socket:numa:0>numa:1"
    assert slowest(cluster, 2, 6) == 22.0
    assert Counter(cluster.link_class) == {"nvlink": 8, "pcie": 24, "socket": 2}


def test_gpus_share_the_card_of_their_socket():
    cluster = built("a100-bridges.txt", nodes=2, gpu=gpu_presets()["a100-sxm-80"])
    assert {next(name for name in names(cluster, gpu, 8) if name.startswith("nic-out")) for gpu in range(4)} == {"nic-out:0"}
    assert {next(name for name in names(cluster, gpu, 8) if name.startswith("nic-out")) for gpu in range(4, 8)} == {"nic-out:1"}
    # From GPU 3 the bytes climb to the CPU and come down to the card's switch: two links more than from GPU 0.
    assert len(cluster.route(3, 8)) == len(cluster.route(0, 8)) + 1


def test_nccl_dump():
    # 4 + 4 + 5 + 5 NVLinks to switches; cards of 400,000 Mb/s; PCIe 32 GT/s x 16 lanes is 16 x 240 / 80 = 48 GB/s; Sapphire Rapids.
    described = wiring("nccl-4gpu.xml")
    assert described.vertices["nic:2"].rate == 50e9
    assert {gpu: described.vertices[f"gpu:{gpu}"].nic for gpu in range(4)} == {gpu: f"nic:{gpu}" for gpu in range(4)}
    cluster = built("nccl-4gpu.xml", nodes=2)
    assert names(cluster, 1, 2) == ["n0/nvlink:gpu:1>nvswitch:0", "n0/nvlink:nvswitch:0>gpu:2"]
    assert slowest(cluster, 1, 2) == pytest.approx(310.5)
    assert names(cluster, 1, 4)[:3] == ["n0/pcie:gpu:1>pcie:0000:16:00.0", "n0/pcie:pcie:0000:16:00.0>nic:1", "nic-out:1"]
    assert slowest(cluster, 1, 4) == pytest.approx(44.0)
    # In each copy: 4 NVLinks, 4 GPUs, 4 cards, 2 uplinks, 1 pair of sockets, both ways; and 4 cards on the leaf.
    assert Counter(cluster.link_class) == {"nvlink": 16, "pcie": 40, "socket": 4, "nic": 16}
    assert slowest(built("nccl-4gpu.xml", nvlink_efficiency=1.0), 0, 1) == 450.0


DIRECT = """<system version="1">
  <cpu numaid="0" arch="x86_64" vendor="AuthenticAMD" familyid="175" modelid="1">
    <pci busid="0001:00:00.0" class="0x030200" link_speed="" link_width="0">
      <gpu dev="0" sm="80" rank="0" gdr="1"><nvlink target="0002:00:00.0" count="12" tclass="0x030200"/></gpu>
    </pci>
    <nic><net name="eth0" dev="0" speed="100000" port="0" guid="0x0" maxconn="65536" gdr="0"/></nic>
  </cpu>
  <cpu numaid="1" arch="x86_64" vendor="AuthenticAMD" familyid="23" modelid="1">
    <pci busid="0002:00:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="8">
      <gpu dev="1" sm="80" rank="1" gdr="1"><nvlink target="0001:00:00.0" count="12" tclass="0x030200"/></gpu>
    </pci>
  </cpu>
</system>
"""


def read_text(folder: Path, text: str, name: str = "topo.xml", **keys) -> tuple[Wiring | None, list[Problem]]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_wiring(str(path), keys)


def test_nccl_dump_of_a_virtual_machine(tmp_path: Path):
    # A bus without a speed takes the default; 8 lanes of 16 GT/s are 12 GB/s; of two CPUs the slower link counts (Zen 2: 16 GB/s).
    found, problems = read_text(tmp_path, DIRECT)
    assert problems == []
    cluster = GraphTopology(wiring=found, gpu=gpu_presets()["a100-sxm-80"], nodes=2).build()
    capacity = dict(zip(cluster.link_names, cluster.bandwidth / GIGA, strict=True))
    assert capacity["n0/nvlink:gpu:0>gpu:1"] == pytest.approx(195.0)
    assert capacity["n0/pcie:gpu:0>numa:0"] == 24.0
    assert capacity["n0/pcie:gpu:1>numa:1"] == 12.0
    assert capacity["n1/socket:numa:0>numa:1"] == 16.0
    assert capacity["nic-out:0"] == pytest.approx(12.5 * 0.88)
    assert len({name for gpu in (0, 1) for name in names(cluster, gpu, 2) if name.startswith("nic")}) == 2  # one card for both


def test_several_cards_beside_one_gpu_work_together():
    card = {number: Card(parent="pcie:0", rate=12.5e9) for number in range(4)}
    assert share_out(card, {0: dict.fromkeys(card, 0)}) == {0: (0, 1, 2, 3)}
    assert share_out(card, {0: dict.fromkeys(card, 1), 1: dict.fromkeys(card, 1)}) == {0: (0, 1), 1: (2, 3)}
    # Farther away than a PCIe switch, or of unknown rate, one GPU has one card.
    assert share_out(card, {0: dict.fromkeys(card, 3), 1: dict.fromkeys(card, 3)}) == {0: (0,), 1: (1,)}
    assert share_out({0: Card(parent="a"), 1: Card(parent="a")}, {0: {0: 0, 1: 0}}) == {0: (0,)}
    # Three GPUs, two cards; and a GPU whose only near card another group has taken.
    two = {0: card[0], 1: card[1]}
    assert share_out(two, {gpu: {0: 0, 1: 0} for gpu in range(3)}) == {0: (0,), 1: (0,), 2: (1,)}
    assert share_out(two, {0: {0: 0, 1: 4}, 1: {0: 2, 1: 2}, 2: {0: 0, 1: 4}}) == {0: (0,), 1: (1,), 2: (0,)}


def test_astra_sim_network():
    # Ring of 4 inside, 4 of them over switches; 1 GB is 2**30 B there. A port is as wide as the links beside it: 2 x 50 + 25.
    cluster = built("astra-2d.yml")
    assert cluster.gpus == 16
    assert cluster.node_of.tolist() == [npu // 4 for npu in range(16)]
    assert names(cluster, 0, 1) == ["port:gpu:0>npu:0", "dim1:npu:0>npu:1", "port:npu:1>gpu:1"]
    assert len(cluster.route(0, 2)) == 4  # half-way round the ring
    assert names(cluster, 0, 12) == ["port:gpu:0>npu:0", "dim2:npu:0>switch:2.0", "dim2:switch:2.0>npu:12", "port:npu:12>gpu:12"]
    assert slowest(cluster, 0, 12) == pytest.approx(25 * 2**30 / 1e9)
    assert cluster.route_latency()[0, 12] == pytest.approx(4e-6)
    assert cluster.route_latency()[0, 1] == pytest.approx(500e-9)
    assert Counter(cluster.link_class) == {"dim1": 32, "dim2": 32, "port": 32}
    port = cluster.bandwidth[cluster.link_names.index("port:gpu:0>npu:0")]
    assert port == pytest.approx(125 * 2**30)


@pytest.mark.parametrize(("shape", "links", "hops"), [("Switch", 12, 2), ("FullyConnected", 30, 1), ("Ring", 24, 3)])
def test_astra_sim_shapes_of_one_dimension(tmp_path: Path, shape: str, links: int, hops: int):
    # 6 NPUs: 6 links to a switch; 15 pairs; 6 links of a ring and 6 ports. Neighbours are 2, 1 and 1 (and two ports) apart.
    text = f"topology: [ {shape} ]\nnpus_count: [ 6 ]\nbandwidth: [ 100 ]\nlatency: [ 0 ]\n"
    found, problems = read_text(tmp_path, text, "network.yml")
    assert problems == []
    topology = GraphTopology(wiring=found)
    check_topology(topology)
    cluster = topology.build()
    assert (cluster.links, len(cluster.route(0, 1)), cluster.nodes) == (links, hops, 1)


def smi(changes: dict[str, str]) -> str:
    text = (SAMPLES / "a100-bridges.txt").read_text(encoding="utf-8")
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after, 1)
    return text


def test_colours_prompts_and_old_words_do_not_matter(tmp_path: Path):
    text = "$ nvidia-smi topo -m\n" + smi({"\tGPU0\t": "\t\x1b[4mGPU0\t", "GPU NUMA ID": "GPU NUMA ID\x1b[0m"}).replace("SYS", "SOC")
    found, problems = read_text(tmp_path, text.replace("\t", "    "), "topo.txt")
    assert problems == []
    assert found is not None
    expected = wiring("a100-bridges.txt")
    assert (found.vertices, found.links) == (expected.vertices, expected.links)


def test_a_windows_shell_writes_utf_16(tmp_path: Path):
    path = tmp_path / "topo.txt"
    path.write_bytes(smi({}).encode("utf-16"))
    found, problems = read_wiring(str(path), {})
    assert problems == []
    assert found is not None
    assert len(found.gpus()) == 8


ROW_1 = "GPU1\tNV12\t X \tNODE"


@pytest.mark.parametrize(
    ("changes", "line", "message"),
    [
        ({ROW_1: "GPU1\tNV12\t X \tFAST"}, 3, "GPU1 to GPU2: unknown connection 'FAST'"),
        ({ROW_1: "GPU1\tNV12\t X \tNV" + "1" * 5000}, 3, "unknown connection 'NV1111"),
        ({ROW_1: "GPU1\tNV12\t X \tNV0"}, 3, "unknown connection 'NV0'"),
        ({ROW_1: "GPU1\tNV12\tPIX\tNODE"}, 3, "GPU1 to GPU1 says 'PIX': X belongs on the diagonal"),
        ({ROW_1: "GPU1\tNV4\t X \tNODE"}, 3, "GPU0 and GPU1 are joined by NV12 in one direction and NV4 in the other"),
        ({ROW_1: "GPU1\tNV12\t X \tSYS"}, 4, "GPU1 and GPU2 are joined by SYS in one direction and NODE"),
        ({"\nGPU7": "\nGPU6"}, 9, "a second row GPU6 (first in line 8)"),
        ({"\tGPU3\t": "\tGPU9\t"}, 1, "there is a gpu:4 but no gpu:3"),
        ({"\tGPU3\t": "\tGPU2\t"}, 1, "two columns are called GPU2"),
        ({"\nGPU3": "\nGPU30"}, 5, "the row GPU30 has no column"),
    ],
)
def test_wrong_matrices(tmp_path: Path, changes: dict[str, str], line: int, message: str):
    found, problems = read_text(tmp_path, smi(changes), "topo.txt")
    assert found is None
    assert [(problem.line, message in problem.message) for problem in problems] == [(line, True)], problems
    assert problems[0].file == str(tmp_path / "topo.txt")


def test_cut_off_matrices(tmp_path: Path):
    lines = smi({}).splitlines()
    _, problems = read_text(tmp_path, "\n".join(lines[:7]), "topo.txt")
    assert (problems[0].line, problems[0].message) == (7, "the matrix is cut off: there is no row for GPU6")
    _, problems = read_text(tmp_path, "\n".join([*lines[:7], lines[7][:20]]), "topo.txt")
    assert (problems[0].line, problems[0].message) == (8, "the row GPU6 is cut off: 4 of 10 columns")
    _, problems = read_text(tmp_path, "nothing of the kind", "topo.txt")
    assert "there is no matrix" in problems[0].message
    _, problems = read_text(tmp_path, "", "topo.txt")
    assert "there is no matrix" in problems[0].message


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>\n'


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ('version="1"', 'version="2"', 1, "has version '2', and only version 1 can be read; version 2 is RCCL's"),
        (' version="1"', "", 1, "has version None"),
        ("<system", LAUGHS + "<system", 1, "document type"),
        ("</system>", "", 14, "this is not XML: no element found"),
        ("<system", "system", 1, "this is not XML: syntax error"),
        ('dev="1"', 'dev="2"', 10, "there is a gpu:2 but no gpu:1"),
        ('dev="1"', 'dev="0"', 10, "a second <gpu> with dev 0 (first in line 4)"),
        ('dev="1"', 'dev="one"', 10, "dev='one' of <gpu> is not a whole number"),
        (' numaid="1"', "", 8, "<cpu> has no 'numaid'"),
        ('numaid="1"', 'numaid="0"', 8, "a second <cpu> with numaid 0"),
        ('count="12"', 'count="0"', 4, "count='0' of <nvlink>"),
        ('count="12"', 'count="6"', 10, "GPU 0 has 6 NVLinks to GPU 1, which has 12 back"),
        ('target="0002', 'target="0009', 4, "lead to '0009:00:00.0', which is no <gpu>"),
        ('"16.0 GT/s', '"17.0 GT/s', 9, "unknown link_speed 17.0 GT/s"),
        ('numaid="0"', 'numaid="0" host_hash="0x1"', 1, "holds 2 servers"),
        ('busid="0001:00:00.0"', "", 3, "<pci> has no busid"),
        ('busid="0001:00:00.0"', 'busid="slot 7"', 3, "busid='slot 7' is not like"),
        ('link_width="8"', 'link_width="800"', 9, "link_width='800' of <pci> is not a whole number from 0 to 32"),
        ('speed="100000"', 'speed="' + "9" * 5000 + '"', 6, "is not a whole number from -1"),
    ],
)
def test_wrong_dumps(tmp_path: Path, before: str, after: str, line: int, message: str):
    assert before in DIRECT
    found, problems = read_text(tmp_path, DIRECT.replace(before, after, 1), format="nccl")
    assert found is None
    assert [(problem.line, message in problem.message) for problem in problems] == [(line, True)], problems


def test_a_bus_of_unknown_width_is_no_mistake(tmp_path: Path):
    # Linux says 255 where a virtual machine hides the width, NCCL writes it down: 16 lanes are taken, as where there is no number.
    found, problems = read_text(tmp_path, DIRECT.replace('link_width="8"', 'link_width="255"').replace('link_width="0"', 'link_width=""'))
    assert problems == []
    cluster = GraphTopology(wiring=found, gpu=gpu_presets()["a100-sxm-80"]).build()
    assert cluster.bandwidth[cluster.link_names.index("pcie:gpu:1>numa:1")] == 16 * 120 / 80 * GIGA


def test_a_dump_without_gpus_or_of_something_else(tmp_path: Path):
    _, problems = read_text(tmp_path, '<system version="1"></system>')
    assert "there is no <gpu>" in problems[0].message
    _, problems = read_text(tmp_path, "<graphs/>", format="nccl")
    assert "expected <system version" in problems[0].message


ASTRA = "topology: [ Ring, Switch ]\nnpus_count: [ 4, 2 ]\nbandwidth: [ 50, 25 ]\nlatency: [ 500, 900 ]\n"


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("Ring", "Rign", 1, "unknown topology 'Rign'; did you mean 'Ring'?"),
        ("[ 4, 2 ]", "[ 4 ]", 2, "npus_count has 1 entries for 2 dimensions"),
        ("[ 4, 2 ]", "[ 4, 1 ]", 2, "1 is no number of NPUs"),
        ("[ 4, 2 ]", "[ 999, 999 ]", 2, "998001 NPUs are too many"),
        ("[ 4, 2 ]", "8", 2, "npus_count is a list"),
        ("50", "0", 3, "0 cannot be used"),
        ("50", ".nan", 3, "nan cannot be used (GB/s for bandwidth, ns for latency): not a number"),
        ("50,", "1e300,", 3, "1e+300 cannot be used"),
        ("50,", "1e-30,", 3, "out of range"),
        ("50,", "fast,", 3, "'fast' cannot be used"),
        ("500", "-1", 4, "-1 cannot be used"),
        ("latency", "latencies", 4, "unknown key 'latencies'; did you mean 'latency'?"),
        ("latency: [ 500, 900 ]", "", 0, "the key 'latency' is missing"),
        ("[ 50, 25 ]", "[ 50, 25", 4, "this is not YAML"),
    ],
)
def test_wrong_astra_sim_networks(tmp_path: Path, before: str, after: str, line: int, message: str):
    found, problems = read_text(tmp_path, ASTRA.replace(before, after, 1), "network.yml", format="astra-sim")
    assert found is None
    assert [(problem.line, message in problem.message) for problem in problems] == [(line, True)], problems


def test_the_first_version_of_astra_sim_is_told_apart(tmp_path: Path):
    text = '{"topology-name": "Hierarchical", "dimensions-count": 1, "units-count": [8], "link-bandwidth": [50]}'
    found, problems = read_text(tmp_path, text, "network.json")
    assert found is None
    assert "a network of ASTRA-sim's first version: write npus_count" in problems[0].message


def test_astra_sim_dimensions_count_from_the_inside(tmp_path: Path):
    # NPU 1 + 2*2 + 6*1 = 11 of 2 x 3 x 2: beside it 10 (dimension 1), 7 and 9 (dimension 2) and 5 (dimension 3).
    text = "topology: [ Ring, FullyConnected, Ring ]\nnpus_count: [ 2, 3, 2 ]\nbandwidth: [ 4, 2, 1 ]\nlatency: [ 1, 1, 1 ]\n"
    found, problems = read_text(tmp_path, text, "network.yml")
    assert problems == []
    assert found is not None
    beside = {next(end for end in link.ends if end != "npu:11"): link.link_class for link in found.links if "npu:11" in link.ends}
    assert beside == {"npu:10": "dim1", "npu:7": "dim2", "npu:9": "dim2", "npu:5": "dim3", "gpu:11": "port"}
    port = next(link for link in found.links if link.link_class == "port")
    assert port.bandwidth == (4 + 2 * 2 + 1) * 2.0**30


def test_uneven_nvlinks_are_no_switch(tmp_path: Path):
    # Half of a hybrid cube mesh: every pair of four GPUs is joined, some by two links and some by one; and NV18 alone would be a switch.
    rows = ["GPU0 GPU1 GPU2 GPU3 CPU Affinity", "GPU0 X NV1 NV2 NV18 0-1", "GPU1 NV1 X NV18 NV2 0-1", "GPU2 NV2 NV18 X NV1 0-1"]
    found, problems = read_text(tmp_path, "\n".join([*rows, "GPU3 NV18 NV2 NV1 X 0-1"]), "topo.txt")
    assert problems == []
    cluster = GraphTopology(wiring=found).build()
    assert names(cluster, 0, 3) == ["nvlink:gpu:0>gpu:3"]
    assert slowest(cluster, 0, 3) == pytest.approx(18 * 25 * 0.69)
    assert slowest(cluster, 0, 2) == pytest.approx(2 * 25 * 0.69)
    assert not any("nvswitch" in name for name in cluster.link_names)


def test_four_gpus_that_share_out_all_their_nvlinks_have_no_switch(tmp_path: Path):
    # 4 A100 on one board: 4 links to each of 3 others are the 12 that each has.
    rows = ["GPU0 GPU1 GPU2 GPU3", "GPU0 X NV4 NV4 NV4", "GPU1 NV4 X NV4 NV4", "GPU2 NV4 NV4 X NV4", "GPU3 NV4 NV4 NV4 X"]
    found, problems = read_text(tmp_path, "\n".join(rows), "topo.txt")
    assert problems == []
    assert names(GraphTopology(wiring=found).build(), 0, 3) == ["nvlink:gpu:0>gpu:3"]
