"""``moesim network``: what is printed for people and for scripts, what is written, and what bad input is told."""

from __future__ import annotations

import csv
import io
import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scenario_texts import SMALL

from moesim.cli import main
from moesim.desk.network_files import NAMES
from moesim.desk.result_files import NAMES as OF_RUN

# Ports of 10 GB/s, 2 us from GPU to GPU: 4 GPUs, so an even all-to-all of S bytes takes 2 us + 3/4 S / 10 GB/s.
ONE = "cluster: {kind: one_switch, gpus: 4, bandwidth: 10 GB/s, latency: 2 us}\n"
# Two nodes of two, each below its own leaf, half of the cards' bandwidth to the spine.
TWO = """\
name: thin
cluster:
  {kind: nvlink_nodes, nodes: 2, gpus_per_node: 2, nic: 10 GB/s, nic_latency: 0, switch_latency: 0, nvlink: 100 GB/s, nvlink_latency: 0,
   nodes_per_leaf: 1, oversubscription: 2}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moesim.models.sharing.core.needs_compiling", lambda: False)  # on a fresh machine it would say so on stderr
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "two.yaml").write_text(TWO)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["network", *(str(word) for word in words)])


def answer(*words: object) -> dict:
    done = invoke(*words, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_json_that_scripts_rely_on(folder: Path) -> None:
    # GPU 0 sends 30 kB to each other GPU: 90 kB over its port in 9 us, after 2 us.
    (folder / "m.csv").write_text("0,30e3,30e3,30e3\n" + "0,0,0,0\n" * 3)
    found = answer("one.yaml", "--traffic", "m.csv")
    assert found["finish_s"] == pytest.approx(11e-6, rel=1e-9)
    assert found["bottleneck"] == "nvlink-out:0"
    assert len(found["links"]) == 8
    link = {each["name"]: each for each in found["links"]}
    assert link["nvlink-out:0"]["bytes"] == pytest.approx(90e3)
    assert link["nvlink-out:0"]["busy_s"] == pytest.approx(9e-6)
    assert link["nvlink-out:0"]["utilisation"] == pytest.approx(9 / 11)
    assert link["nvlink-in:2"]["utilisation"] == pytest.approx(3 / 11)
    assert link["nvlink-in:0"] | {"bytes": 0.0, "busy_s": 0.0, "utilisation": 0.0} == link["nvlink-in:0"]
    # 90 kB of 4 GPUs in 11 us, and 4 / 3 of it: in B/s.
    assert found["busbw"] == pytest.approx(90e3 / 4 / 11e-6)
    assert found["algbw"] == pytest.approx(found["busbw"] * 4 / 3)
    assert found["incast"] == {"degree": 1, "destination": 1}
    assert sum(found["over_time"]["classes"]["nvlink"]["mean"]) > 0


def test_a_matrix_of_ones_own_is_played_exactly_though_a_sweep_of_its_size_is_not(folder: Path) -> None:
    # 150 GPUs make 22,350 pairs: more than the 20,000 up to which runs are exact. The matrix is, as scripts rely on; --mode still decides.
    (folder / "m.csv").write_text((",".join(["1e6"] * 150) + "\n") * 150)
    words = ("one.yaml", "cluster.gpus=150", "--traffic", "m.csv", "--bins", "1")
    assert answer(*words)["sharing"]["mode"] == "exact"
    assert answer(*words, "--mode", "auto")["sharing"]["mode"] == "fast"


def test_two_gpus_without_a_route_are_told_with_the_file(folder: Path) -> None:
    (folder / "parts.yaml").write_text("links: [{ends: [gpu:0, gpu:1]}, {ends: [gpu:2, gpu:3]}]\n")
    (folder / "islands.yaml").write_text("cluster: {kind: graph, file: parts.yaml}\n")
    done = invoke("islands.yaml")
    assert done.exit_code == 2
    assert "islands.yaml: cluster: gpu:2 has no route to gpu:0: connect them through links and switches" in done.stderr


def test_the_sweep_has_the_columns_and_numbers_of_nccl_tests() -> None:
    done = invoke("one.yaml", "--from", "64K", "--to", "1M", "-f", 4)
    assert done.exit_code == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    heads = next(line for line in lines if line.startswith("#"))
    assert heads.split() == ["#", "size", "count", "type", "redop", "root", "time", "algbw", "busbw"]
    rows = [line.split() for line in lines if line.strip()[:1].isdigit() and "float" in line]
    assert [row[:5] for row in rows] == [[str(2**at), str(2**at // 16), "float", "none", "-1"] for at in (16, 18, 20)]
    for row in rows:
        time = 2.0 + 0.75 * int(row[0]) / 10e3  # us
        assert float(row[5]) == pytest.approx(time, abs=0.006)
        assert float(row[6]) == pytest.approx(int(row[0]) / time / 1e3, abs=0.006)
        assert float(row[7]) == pytest.approx(0.75 * int(row[0]) / time / 1e3, abs=0.006)
    # The numbers stand below their heads.
    assert all(line.rstrip()[-1].isdigit() for line in lines[4:7])


def test_csv_of_a_sweep_holds_its_rows_and_of_a_matrix_the_links(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("one.yaml", "--size", "1MB", "--format", "csv").stdout)))
    assert [row["size"] for row in rows] == ["1000000"]
    assert float(rows[0]["time_s"]) == pytest.approx(77e-6)
    (folder / "m.csv").write_text("0,5,0,0\n" + "0,0,0,0\n" * 3)
    links = list(csv.DictReader(io.StringIO(invoke("one.yaml", "--traffic", "m.csv", "--format", "csv").stdout)))
    assert {row["link"]: float(row["bytes"]) for row in links if float(row["bytes"])} == {"nvlink-out:0": 5.0, "nvlink-in:1": 5.0}


def test_the_reasons_of_a_thin_spine() -> None:
    # Buffers of 40 MB: 10 MB to each other GPU. A card sends 20 MB in 2 ms; a leaf's 10 GB/s to the spine carry 2 x 2 x 10 MB in 4 ms.
    found = answer("two.yaml", "--size", "40MB")
    why = found["why"]
    assert found["finish_s"] == pytest.approx(4e-3, rel=1e-9)
    assert (why["port_class"], why["largest"]) == ("nic", "oversubscription")
    assert why["factors"] == pytest.approx({"skew": 1, "oversubscription": 2, "collisions": 1, "sharing": 1, "latency": 1})
    assert why["share_of_port"] == pytest.approx(0.5)
    assert why["bottleneck"] | {"flows": 4, "sources": 2, "destinations": 2, "link_class": "uplink"} == why["bottleneck"]
    assert found["cross_node_share"] == pytest.approx(2 / 3)
    text = invoke("two.yaml", "--size", "40MB").stdout
    assert "x 2.000  oversubscription" in text
    assert "moves 5 GB/s on average, 50 % of its rate" in text


def test_nodes_one_row_each(folder: Path) -> None:
    rows = answer("two.yaml", "--nodes", "1,2,4", "--size", "40MB")["rows"]
    assert [(row["nodes"], row["gpus"], row["port_class"]) for row in rows] == [(1, 2, "nvlink"), (2, 4, "nic"), (4, 8, "nic")]
    assert [row["bottleneck"].split(":")[0] for row in rows] == ["nvlink-in", "downlink", "downlink"]
    # 8 GPUs, 5 MB each: a card sends 30 MB of 6 foreign GPUs in 3 ms; a leaf's 10 GB/s carry 2 x 6 x 5 MB in 6 ms.
    assert rows[2]["time_s"] == pytest.approx(6e-3)
    assert rows[2]["share_of_port"] == pytest.approx(0.5)
    last = invoke("two.yaml", "--nodes", "1,2", "--size", "40MB").stdout.splitlines()[4]
    assert last.split()[:2] == ["2", "4"]
    assert last.endswith("oversubscription x 2.00")


def test_incast_divides_the_receivers_port() -> None:
    rows = answer("one.yaml", "--incast", "1,3", "--size", "1MB", "--receiver", 2)["rows"]
    # 1 MB at 10 GB/s and 2 us; three times as much and 2 us.
    assert [row["time_s"] for row in rows] == pytest.approx([102e-6, 302e-6])
    assert [row["rate_per_sender"] for row in rows] == pytest.approx([1e6 / 102e-6, 1e6 / 302e-6])
    assert {row["bottleneck"] for row in rows} <= {"nvlink-in:2", "nvlink-out:0"}
    assert answer("one.yaml", "--incast", "3", "--receiver", 2)["incast"] == {"degree": 3, "destination": 2}


def test_a_layer_sends_what_the_run_of_the_scenario_sends(folder: Path) -> None:
    # A prefill step has no backward exchange: the bytes of a layer's dispatch in layers.csv are those of the forward one alone.
    from moesim import run

    words = ["workload.phase=prefill", "steps=2", "warmup=0"]
    found = answer("small.yaml", *words, "--layer", 1, "--step", 1)
    table = run(folder / "small.yaml", words).tables["layers"]
    (sent,) = table["dispatch_bytes"][(table["step"] == 1) & (table["moe_layer"] == 1)]
    assert found["total_bytes"] == pytest.approx(float(sent), rel=1e-12)
    assert found["question"] == "dispatch of MoE layer 1, step 1, by exchange direct"
    assert found["total_bytes"] != answer("small.yaml", *words, "--layer", 0, "--step", 1)["total_bytes"]
    assert "there is no MoE layer 2: tiny has MoE layers 0 to 1" in invoke("small.yaml", "--layer", 2).stderr


def test_other_operations() -> None:
    # A ring of 4: each GPU sends 3/4 of 40 MB to its neighbour at 10 GB/s.
    row = answer("one.yaml", "cluster.latency=0", "--collective", "all_gather", "--size", "40MB", "--fidelity", "steps")["rows"][0]
    assert row["time_s"] == pytest.approx(3e-3)
    assert row["busbw"] == pytest.approx(10e9)
    assert row["count"] == 2_500_000
    line = next(line for line in invoke("one.yaml", "--collective", "all_reduce", "--size", "40MB").stdout.splitlines() if "float" in line)
    assert line.split()[1:5] == ["10000000", "float", "sum", "-1"]
    assert answer("one.yaml", "cluster.latency=0", "--collective", "sendrecv", "--size", "40MB")["busbw"] == pytest.approx(10e9)


def test_popular_destinations_cost_what_their_port_carries_more() -> None:
    even, skewed = answer("one.yaml", "--size", "16M"), answer("one.yaml", "--size", "16M", "--skew", "1")
    assert skewed["why"]["factors"]["skew"] > 1.1
    assert skewed["finish_s"] / even["finish_s"] == pytest.approx(skewed["why"]["factors"]["skew"], rel=0.01)
    assert skewed == answer("one.yaml", "--size", "16M", "--skew", "1")
    assert skewed != answer("one.yaml", "seed=7", "--size", "16M", "--skew", "1")


def test_the_folder_and_its_pictures(folder: Path) -> None:
    done = invoke("two.yaml", "--size", "40MB", "-o", "out", "--bins", 5)
    assert done.exit_code == 0, done.output
    assert done.stderr == "Results in out\n"
    content = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert set(content) == NAMES
    assert not NAMES & OF_RUN
    assert json.loads(content["network.json"]) == answer("two.yaml", "--size", "40MB", "--bins", 5)
    for name in ("network-fabric.png", "network-over-time.png"):
        assert content[name][:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[name][16:24])
        assert width > 1000
        assert height > 300
    svg = content["network-fabric.svg"].decode()
    assert ">spine 0<" in svg
    assert all(f">{gpu}<" in svg for gpu in range(4))
    assert ">mean of uplink (4)<" in content["network-over-time.svg"].decode()
    rows, links = (list(csv.DictReader(io.StringIO(content[f"network-{name}.csv"].decode()))) for name in ("over-time", "links"))
    for link in links:
        assert sum(float(row["bytes"]) for row in rows if row["link"] == link["link"]) == pytest.approx(float(link["bytes"]))
    # Its own folder may be written again, with the same bytes.
    assert invoke("two.yaml", "--size", "40MB", "-o", "out", "--bins", 5).exit_code == 0
    assert content == {path.name: path.read_bytes() for path in Path("out").iterdir()}


def test_what_an_earlier_question_left_is_gone(folder: Path) -> None:
    invoke("one.yaml", "--size", "1M", "-o", "out")
    assert Path("out/network-rows.csv").exists()
    (folder / "m.csv").write_text("0,0,0,0\n" * 4)
    invoke("one.yaml", "--traffic", "m.csv", "-o", "out")
    left = {path.name for path in Path("out").iterdir()}
    assert left == NAMES - {"network-rows.csv", "network-over-time.png", "network-over-time.svg"}


def test_a_folder_of_somebody_else_is_left_alone(folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine/network-links.csv").write_text("precious")
    done = invoke("one.yaml", "--size", "1M", "-o", "mine")
    assert done.exit_code == 2
    assert Path("mine/network-links.csv").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "m.csv: holds no numbers; a traffic matrix has 4 lines of 4 numbers"),
        ("0,1,2,3\n0,x,0,0\n", "m.csv:2:3: 'x' is not a number"),
        ("a,b,c,d\n", "m.csv:1:1: 'a' is not a number; a traffic matrix has neither a header nor names of rows"),
        ("0,1,2,3\n0, -5,0,0\n", "m.csv:2:4: -5 bytes cannot be sent"),
        ("0,nan,2,3\n", "m.csv:1:3: 'nan' is not a finite number of bytes"),
        ("0,inf,2,3\n", "m.csv:1:3: 'inf' is not a finite number of bytes"),
        ("0,1e19,2,3\n", "m.csv:1:3: 1e19 bytes are more than 1e+18"),
        ("0,1_0,2,3\n", "m.csv:1:3: '1_0' is not a number"),
        ("0,,2,3\n", "m.csv:1:3: '' is not a number: a cell is empty; write 0"),
        ("0,1,2\n", "m.csv:1:1: this row has 3 of the 4 numbers that it needs"),
        ("0 1 2 3\n", "m.csv:1:1: '0 1 2 3' is not a number; separate numbers by commas"),
        ("0;1;2;3\n", "separate numbers by commas, and write the decimal point as ."),
        ("0,1,2,3\n", "m.csv:1:1: the matrix ends after row 1"),
        ("# x\n" + "0,1,2,3\n\n" * 5, "m.csv:10:1: this is row 5"),
    ],
)
def test_a_matrix_that_is_none_is_told_where_and_why(folder: Path, content: str, said: str) -> None:
    (folder / "m.csv").write_text(content)
    done = invoke("one.yaml", "--traffic", "m.csv")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_matrix_that_is_no_text_or_not_there(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b"0,1,2,3\n\xff\xfe")
    assert "m.csv:2:1: this is not text" in invoke("one.yaml", "--traffic", "m.csv").stderr
    assert "n.csv: there is no such file" in invoke("one.yaml", "--traffic", "n.csv").stderr
    assert "cannot be read: is a directory" in invoke("one.yaml", "--traffic", ".").stderr


def test_comments_blank_lines_spaces_and_a_byte_order_mark_are_fine_and_the_diagonal_is_named(folder: Path) -> None:
    (folder / "m.csv").write_text("\ufeff# bytes\n9, 5,0,0\n\n" + "0,0,0 ,0\n" * 3, encoding="utf-8")
    found = answer("one.yaml", "--traffic", "m.csv")
    assert found["total_bytes"] == 5
    assert found["notes"] == ["the diagonal of m.csv is ignored: those bytes stay on their GPU"]


def test_nothing_to_send_is_an_answer_too(folder: Path) -> None:
    (folder / "m.csv").write_text("0,0,0,0\n" * 4)
    found = answer("one.yaml", "--traffic", "m.csv")
    assert (found["finish_s"], found["bottleneck"], found["algbw"], found["why"]) == (0.0, None, 0.0, None)
    assert "Nothing was sent." in invoke("one.yaml", "--traffic", "m.csv").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.yaml"], "none.yaml: there is no such file; did you mean 'one.yaml'?"),
        (["one.yaml", "clustr.gpus=2"], "unknown key 'clustr'; did you mean 'cluster'?"),
        (["one.yaml", "cluster.gpu=nothing"], "cluster.gpu: unknown preset 'nothing'"),
        (["one.yaml", "--nodes", "1,2"], "override cluster.nodes=1: cluster.nodes: unknown key 'nodes'"),
        (["two.yaml", "--nodes", "1,x"], "--nodes: 'x' is not a whole number from 1; write for example --nodes 1,2,4,8"),
        (["one.yaml", "--incast", "4"], "4 senders do not fit: beside the receiver the cluster has 3 GPUs"),
        (["one.yaml", "--incast", "1", "--receiver", "4"], "there is no GPU 4: the cluster has GPUs 0 to 3"),
        (["one.yaml", "--incast", "1", "--traffic", "m.csv"], "--traffic and --incast are two questions"),
        (["one.yaml", "--incast", "1", "--skew", "1"], "--skew has no meaning with --incast; leave it out"),
        (["one.yaml", "--size", "1M", "--to", "2M"], "--to has no meaning with --size; leave it out"),
        (["one.yaml", "--step", "1"], "--step has no meaning here; leave it out"),
        (["one.yaml", "--size", "8"], "8 B are less than one element of 4 B for each of 4 ranks"),
        (["one.yaml", "--size", "1X"], "--size: unknown unit 'X' of a size"),
        (["one.yaml", "--size", "2000TB"], "--size: '2000TB' is out of range"),
        (["one.yaml", "--from", "2M", "--to", "1M"], "--to (1 MiB) is less than --from (2 MiB)"),
        (["one.yaml", "--skew", "nan"], "--skew: nan is not a number"),
        (["one.yaml", "--ep", "3"], "4 GPUs do not divide into groups of 3 ranks"),
        (["one.yaml", "--algorithm", "tree"], "--algorithm has no meaning with alltoall"),
        (["one.yaml", "--collective", "reduce", "--skew", "1"], "--skew has no meaning with --collective reduce"),
        (["one.yaml", "--collective", "all_gather", "--algorithm", "tree"], "there is no tree algorithm for all_gather"),
        (["one.yaml", "--layer", "0"], "one.yaml:1:1: missing key 'model'"),
        (["one.yaml", "-o", " "], "-o names no folder"),
    ],
)
def test_bad_words_are_told_what_is_wrong(words: list[str], said: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f.yaml: the file is empty; it needs a section 'cluster:'"),
        ("- 1\n", "f.yaml:1:1: expected a mapping with a section 'cluster:'"),
        ("name: x\n", "missing key 'cluster'"),
        ("cluster: {kind: one_swich}\n", "did you mean 'one_switch'"),
        ("name: x\nclutser: {kind: one_switch}\n", "f.yaml:2:1: clutser: unknown key 'clutser'; did you mean 'cluster'?"),
    ],
)
def test_a_file_without_a_cluster_is_told_so(folder: Path, text: str, said: str) -> None:
    (folder / "f.yaml").write_text(text)
    done = invoke("f.yaml")
    assert done.exit_code == 2
    assert said in done.stderr


def test_other_sections_of_a_scenario_are_not_looked_at(folder: Path) -> None:
    # The trace of this scenario is not there; its cluster is all that counts.
    text = SMALL.replace("routing: {kind: lognormal, sigma: 1e-1}", "routing: {kind: recorded, trace: elsewhere.npz}")
    assert text != SMALL
    (folder / "scenario.yaml").write_text(text)
    assert answer("scenario.yaml", "--size", "1M")["name"] == "small"


def test_links_may_come_from_a_plugin_beside_the_file(folder: Path) -> None:
    (folder / "ring.py").write_text(
        "from dataclasses import dataclass\n"
        "import networkx as nx\n"
        "from moesim.base.registry import register\n"
        "from moesim.facts.gpu_presets import gpu_presets\n"
        "from moesim.models.topology.flatten import flatten\n"
        "@register('topology', 'apart_of_network_test')\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Apart:\n"
        "    '''Two GPUs without a link.'''\n"
        "    def graph(self):\n"
        "        graph = nx.DiGraph()\n"
        "        graph.add_node('gpu:0', kind='gpu', node=0)\n"
        "        graph.add_node('gpu:1', kind='gpu', node=0)\n"
        "        return graph\n"
        "    def build(self):\n"
        "        return flatten(self.graph(), gpu=gpu_presets()['h100-sxm'])\n"
    )
    (folder / "apart.yaml").write_text("plugins: [ring.py]\ncluster: {kind: apart_of_network_test}\n")
    from moesim.base.registry import SLOTS

    try:
        done = invoke("apart.yaml")
    finally:
        SLOTS["topology"].known.pop("apart_of_network_test", None)
    assert done.exit_code == 2
    assert "gpu:0 has no route to gpu:1" in done.stderr


def test_modes_of_sharing_are_chosen_told_and_written(folder: Path) -> None:
    for mode in ("auto", "exact", "fast", "coarse", "bound"):
        found = answer("two.yaml", "--size", "4M", "--skew", 0.8, "--mode", mode)
        assert found["sharing"]["mode"] == ("exact" if mode == "auto" else mode)
        assert sum(found["sharing"]["busy_periods"].values()) == 1
    # What starts together cannot end before the bound, and fairly shared it ends later here.
    ends = {mode: answer("two.yaml", "--size", "4M", "--skew", 0.8, "--mode", mode)["finish_s"] for mode in ("exact", "fast", "bound")}
    assert ends["bound"] <= ends["exact"] * (1 + 1e-9)
    assert ends["fast"] == pytest.approx(ends["exact"], rel=0.01)
    done = invoke("two.yaml", "--size", "4M", "--mode", "fast", "--verify")
    assert done.exit_code == 0, done.output
    assert "Links shared in quanta (fast, 1 % of the time to go" in done.stdout
    assert "measured here in 1 busy period: " in done.stdout
    assert "Links shared exactly." in invoke("two.yaml", "--size", "4M").stdout


def test_the_file_says_how_links_are_shared_unless_the_command_does(folder: Path) -> None:
    (folder / "coarse.yaml").write_text(ONE + "sharing: {mode: coarse, verify: true}\n")
    assert answer("coarse.yaml", "--size", "4M")["sharing"]["verified"]["periods"] == 1
    assert answer("coarse.yaml", "--size", "4M", "--mode", "exact")["sharing"]["mode"] == "exact"
    assert answer("one.yaml", "sharing.mode=fast", "--size", "4M")["sharing"]["mode"] == "fast"
    assert answer("small.yaml", "--layer", 0, "sharing.mode=coarse")["sharing"]["mode"] == "coarse"
    assert answer("small.yaml", "--layer", 0, "--mode", "bound")["sharing"]["mode"] == "bound"


@pytest.mark.parametrize(("mode", "why"), [("exact", "there is nothing to compare"), ("bound", "a bound is not meant to be near")])
def test_verifying_what_needs_no_verifying_is_refused(mode: str, why: str) -> None:
    done = invoke("one.yaml", "--mode", mode, "--verify")
    assert done.exit_code == 2
    assert why in done.stderr


def test_other_operations_are_shared_in_the_mode_asked_for_too() -> None:
    for words in (["--collective", "all_reduce"], ["--collective", "sendrecv"], ["--incast", "1,2"]):
        assert (
            answer("one.yaml", *words, "--mode", "coarse", *([] if "--incast" in words else ["--size", "1M"]))["sharing"]["mode"]
            == "coarse"
        )
