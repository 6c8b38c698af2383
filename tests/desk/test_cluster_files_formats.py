"""Graphs that a user writes: GraphML, node-link JSON and YAML, there and back, with the line of every mistake; and whole scenarios."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario_texts import SMALL

from moesim.base.errors import Problem, ScenarioError
from moesim.desk.cluster_files.read import read_wiring
from moesim.desk.content import read_content
from moesim.desk.plain_data import plain_data
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.scenario_text import digest, dump
from moesim.engine.check import check
from moesim.models.topology.graph import GraphTopology
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.wiring import Wiring, wiring_of

SAMPLES = Path(__file__).parent / "fabrics"
ARRAYS = ("node_of", "bandwidth", "latency", "route_start", "route_link", "link_names", "link_class")


@st.composite
def graphs(draw) -> nx.DiGraph:
    """A tree of switches with GPUs below and some more links, each way with its own figures."""
    switches, gpus = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    graph = nx.DiGraph(basis="assumed")
    pairs = [(f"switch:{number}", f"switch:{draw(st.integers(0, number - 1))}") for number in range(1, switches)]
    for gpu in range(gpus):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=0)
        pairs.append((f"gpu:{gpu}", f"switch:{draw(st.integers(0, switches - 1))}"))
    for tail, head in pairs:
        for ends in ((tail, head), (head, tail)):
            graph.add_edge(
                *ends,
                name=f"{ends[0]} to {ends[1]} <&>",
                link_class=draw(st.sampled_from(["nvlink", "wire", "å"])),
                bandwidth=draw(st.floats(1.0, 1e15)),
                latency=draw(st.just(0.0) | st.floats(1e-12, 1e3)),
                weight=draw(st.integers(1, 3)),
            )
    nx.set_node_attributes(graph, {node: node.split(":")[0] for node in graph}, "kind")
    return graph


def write(graph: nx.DiGraph, path: Path) -> Path:
    """Write a graph as anybody would, by the ending of the file."""
    if path.suffix == ".graphml":
        nx.write_graphml(graph, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(nx.node_link_data(graph, edges="edges")), encoding="utf-8")
    else:
        data = plain_data(wiring_of(graph), Wiring, str)
        path.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["graphml", "json", "yaml"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(graph=graphs())
def test_a_graph_comes_back_from_every_format(tmp_path: Path, ending: str, graph: nx.DiGraph):
    found, problems = read_wiring(str(write(graph, tmp_path / f"fabric.{ending}")), {})
    assert problems == []
    one, other = GraphTopology(wiring=wiring_of(graph)).build(), GraphTopology(wiring=found).build()
    for array in ARRAYS:
        assert np.array_equal(getattr(one, array), getattr(other, array)), array


@pytest.mark.parametrize("ending", ["graphml", "json"])
def test_an_undirected_graph_is_full_duplex(tmp_path: Path, ending: str):
    graph = nx.Graph()
    graph.add_node("gpu:0")
    graph.add_node("gpu:1", node=1)
    graph.add_edge("gpu:0", "leaf:0", bandwidth="400 Gb/s", latency="2 us", pos=3.5)  # what moesim does not know is left alone
    graph.add_edge("gpu:1", "leaf:0", bandwidth=25e9, latency=1e-6, name="odd")
    path = tmp_path / f"fabric.{ending}"
    if ending == "graphml":  # networkx wants one type for each attribute
        for _, _, data in graph.edges(data=True):
            data["bandwidth"] = str(data["bandwidth"]) + (" B/s" if isinstance(data["bandwidth"], float) else "")
            data["latency"] = str(data["latency"]) + (" s" if isinstance(data["latency"], float) else "")
    write(graph, path)
    found, problems = read_wiring(str(path), {})
    assert problems == []
    cluster = GraphTopology(wiring=found).build()
    assert dict(zip(cluster.link_names, cluster.bandwidth, strict=True)) == {
        "nic:gpu:0>leaf:0": 50e9,
        "nic:leaf:0>gpu:0": 50e9,
        "odd": 25e9,
        "odd:back": 25e9,
    }
    assert cluster.route_latency()[0, 1] == pytest.approx(3e-6)
    assert cluster.node_of.tolist() == [0, 1]


def test_older_networkx_calls_edges_links(tmp_path: Path):
    path = tmp_path / "fabric.json"
    path.write_text('{"nodes": [{"id": "gpu:0"}, {"id": "gpu:1"}], "links": [{"source": "gpu:0", "target": "gpu:1"}]}')
    found, problems = read_wiring(str(path), {})
    assert problems == []
    assert found is not None
    assert found.links[0].both_ways


def wrong(tmp_path: Path, name: str, text: str, **keys) -> list[Problem]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found, problems = read_wiring(str(path), keys)
    assert found is None
    assert {problem.file for problem in problems} == {str(path)}
    return problems


GRAPHML = """<graphml>
 <key id="b" for="edge" attr.name="bandwidth" attr.type="double"><default>5e9</default></key>
 <key id="n" for="edge" attr.name="name" attr.type="string"/>
 <graph edgedefault="undirected">
  <node id="gpu:0"/><node id="gpu:1"/><node id="leaf:0"/>
  <edge source="gpu:0" target="leaf:0"><data key="n">one</data></edge>
  <edge source="gpu:1" target="leaf:0"><data key="b">7</data></edge>
 </graph>
</graphml>
"""


def test_defaults_of_graphml_keys_count(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text(GRAPHML)
    found, problems = read_wiring(str(path), {})
    assert problems == []
    assert found is not None
    assert [link.bandwidth for link in found.links] == [5e9, 7.0]


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        (">7<", ">0<", 7, "the link gpu:1 - leaf:0: bandwidth: '0.0 B/s' is out of range"),
        (">7<", ">nan<", 7, "nan is not a finite number"),
        (">7<", ">wide<", 7, "'wide' is no double"),
        ('key="b">7', 'key="n">one', 7, "two links are called 'one'"),
        ('"gpu:1" target="leaf:0"', '"leaf:0" target="gpu:0"', 7, "a second link from leaf:0 to gpu:0"),
        ('"gpu:1" target="leaf:0"', '"gpu:1" target="leaf:9"', 7, "ends at 'leaf:9', which is no vertex"),
        ('"gpu:1" target="leaf:0"', '"gpu:1" target="gpu:1"', 7, "joins gpu:1 to itself"),
        ('"gpu:1" target="leaf:0"', '"gpu:1"', 7, "<edge> has no 'target'"),
        ('"gpu:1" target="leaf:0"', '"gpu:1" directed="true" target="leaf:0"', 4, "with and without a direction"),
        ('<node id="gpu:1"/>', '<node id="gpu:1"/><node id="a&#133;b"/>', 5, "is not one line of text"),
        ('<node id="gpu:1"/>', '<node id="gpu:0"/>', 5, "a second vertex 'gpu:0'"),
        ('<node id="gpu:1"/>', '<node id="gpu:1"/><node id="gpu:3"/>', 0, "there is a gpu:3 but no gpu:2"),
        ('key="n">', 'key="x">', 6, "the key 'x', which no <key> defines"),
        ("</graph>", "</graph><graph/>", 1, "found <graphml> with 2"),
        ("<graphml>", '<!DOCTYPE g [<!ENTITY x SYSTEM "file:///etc/passwd">]><graphml>', 1, "document type"),
        ("</graphml>", "", 10, "this is not XML"),
    ],
)
def test_wrong_graphml(tmp_path: Path, before: str, after: str, line: int, message: str):
    assert before in GRAPHML
    problems = wrong(tmp_path, "a.graphml", GRAPHML.replace(before, after, 1))
    assert [(problem.line, message in problem.message) for problem in problems] == [(line, True)], problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is not JSON"),
        ("[]", "expected"),
        ('{"nodes": []}', 'no list "edges"'),
        ('{"nodes": [], "edges": []}', "there is no GPU"),
        ('{"nodes": [{"id": "gpu:0", "node": -1}], "edges": []}', "the vertex 'gpu:0': node: -1 is too small"),
        ('{"nodes": [{"name": "gpu:0"}], "edges": []}', "nodes[0] has no 'id'"),
        ('{"nodes": [{"id": "gpu:0"}], "edges": [{"source": "gpu:0"}]}', "edges[0] has no 'target'"),
        ('{"nodes": [{"id": "gpu:0"}, 7], "edges": []}', "nodes[1] has no 'id'"),
        ('{"nodes": [{"id": "gpu:0", "kind": 7}], "edges": []}', "kind: 7 is not one line of text"),
        ("[" * 100_000, "nested too deeply"),
        ('{"nodes": [{"id": "gpu:0"}, {"id": "nic:0", "rate": 1' + "0" * 400 + '}], "edges": []}', "rate"),
        ('{"nodes": [{"id": "gpu:0"}, {"id": "nic:0", "rate": Infinity}], "edges": []}', "inf is not a finite number"),
    ],
)
def test_wrong_json(tmp_path: Path, text: str, message: str):
    problems = wrong(tmp_path, "a.json", text)
    assert len(problems) == 1
    assert message in problems[0].message


OWN = (SAMPLES / "own.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("200 GB/s", "0 GB/s", 11, "out of range"),
        ("200 GB/s", ".nan", 11, "not a finite number"),
        ("200 GB/s", "200", 11, "has no unit"),
        ("lanes: 4", "lane: 4", 10, "unknown key 'lane'"),
        ("{node: 1}", "{node: one}", 5, "'one' is not a whole number"),
        ("[gpu:1, nvswitch:0]", "[gpu:0, nvswitch:0]", 9, "a second link from gpu:0 to nvswitch:0"),
        ("lanes: 4", "name: cable", 12, "two links are called 'cable'"),
        ("gpu:3: {node: 1}", "gpu:9: {node: 1}", 2, "there is a gpu:9 but no gpu:4"),
        ("links:", "links: [", 8, "this is not YAML"),
    ],
)
def test_wrong_yaml(tmp_path: Path, before: str, after: str, line: int, message: str):
    assert before in OWN
    problems = wrong(tmp_path, "a.yaml", OWN.replace(before, after, 1))
    assert any(message in problem.message for problem in problems), problems
    assert {problem.line for problem in problems if message in problem.message} == {line}, problems


def test_files_that_are_no_description(tmp_path: Path):
    assert "expected a mapping" in wrong(tmp_path, "a.yaml", "")[0].message
    assert "cannot tell what this file is" in wrong(tmp_path, "a.dat", "hello")[0].message
    assert "there is no matrix" in wrong(tmp_path, "a.dat", "hello", format="nvidia-smi")[0].message
    path = tmp_path / "a.bin"
    path.write_bytes(b"ok\n\xff\x00")
    found, problems = read_wiring(str(path), {})
    assert found is None
    assert (problems[0].line, "is not UTF-8" in problems[0].message) == (2, True)
    found, problems = read_wiring(str(tmp_path), {})
    assert found is None
    assert "cannot be read" in problems[0].message


def scenario_text(cluster: str, ep: int = 4) -> str:
    tree = yaml.safe_load(SMALL)
    tree["cluster"] = yaml.safe_load(cluster)
    tree["parallel"] = {"ep": ep}
    return yaml.safe_dump(tree, sort_keys=False)


@pytest.mark.parametrize("name", ["own.yaml", "nccl-4gpu.xml", "h100-nvswitch.txt", "astra-2d.yml"])
def test_a_scenario_with_a_machine_from_a_file_loads_back_equal(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes((SAMPLES / name).read_bytes())
    path = tmp_path / "s.yaml"
    path.write_text(scenario_text(f"{{kind: graph, file: {name}}}"))
    scenario = load_scenario(path)
    assert scenario.cluster.file is None
    assert scenario.cluster.wiring.source.startswith(name)
    (tmp_path / name).unlink()  # the resolved scenario holds the machine
    text = dump(scenario, folder=tmp_path / "out")
    again = read_scenario(text, file="again.yaml", folder=tmp_path)
    assert again == scenario
    assert digest(again) == digest(scenario)


def test_two_machines_are_two_scenarios_though_their_files_have_one_name(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(scenario_text("{kind: graph, file: own.yaml}"))
    (tmp_path / "own.yaml").write_text(OWN)
    one = digest(load_scenario(path))
    (tmp_path / "own.yaml").write_text(OWN.replace("200 GB/s", "201 GB/s"))
    assert digest(load_scenario(path)) != one


def complaints(tmp_path: Path, cluster: str) -> list[str]:
    path = tmp_path / "s.yaml"
    path.write_text(scenario_text(cluster))
    with pytest.raises(ScenarioError) as refused:
        load_scenario(path)
    return [str(problem).replace(str(tmp_path), "") for problem in refused.value.problems]


def test_a_mistake_in_the_file_is_shown_where_it_is(tmp_path: Path):
    (tmp_path / "own.yaml").write_text(OWN.replace("200 GB/s", "200 GBps/s"))
    (found,) = complaints(tmp_path, "{kind: graph, file: own.yaml}")
    assert found.startswith("/own.yaml:11:")
    assert "unknown unit 'GBps/s'" in found


def test_a_machine_in_parts_names_the_pair(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("\n".join(line for line in OWN.splitlines() if "cable" not in line))
    (found,) = complaints(tmp_path, "{kind: graph, file: own.yaml}")
    assert "gpu:2 has no route to gpu:0" in found


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("{kind: graph}", "a graph needs a file"),
        ("{kind: graph, file: gone.yaml}", "there is no such file"),
        ("{kind: graph, file: own.yaml, nodes: 3}", "only a machine with one node can be copied, and own.yaml describes 2"),
        ("{kind: graph, file: own.yaml, format: own}", "unknown choice 'own'"),
        ("{kind: graph, file: own.yaml, format: [a]}", "unknown choice"),
        ("{kind: graph, file: own.yaml, wiring: {vertices: {gpu:0: {}}}}", "either a file or a wiring"),
        ("{kind: graph, wiring: {vertices: {gpu:0: {}}, links: [{ends: [gpu:0]}]}}", "cluster.wiring.links.0.ends"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, cluster: str, message: str):
    (tmp_path / "own.yaml").write_text(OWN)
    assert any(message in complaint for complaint in complaints(tmp_path, cluster))


def test_a_scenario_can_be_looked_at_without_its_file(tmp_path: Path):
    text = scenario_text("{kind: graph, file: gone.xml}")
    scenario = read_scenario(text, file="s.yaml", folder=tmp_path, check=False)
    assert scenario.cluster.file == str(tmp_path / "gone.xml")
    (problem,) = check(scenario, lambda path: None)
    assert "gone.xml was not read" in problem.message
    assert read_scenario(dump(scenario, folder=tmp_path), file="s.yaml", folder=tmp_path, check=False) == scenario


def test_a_wiring_may_stand_in_the_scenario_itself(tmp_path: Path):
    data = plain_data(wiring_of(NvlinkNodes(nodes=2, gpus_per_node=2).graph()), Wiring, str)
    text = scenario_text(yaml.safe_dump({"kind": "graph", "file": None, "wiring": data}))
    cluster = read_scenario(text, file="s.yaml", folder=tmp_path).cluster.build()
    assert np.array_equal(cluster.bandwidth, NvlinkNodes(nodes=2, gpus_per_node=2).build().bandwidth)


def test_an_unknown_reader_is_a_broken_plugin():
    with pytest.raises(Exception, match="wants its file read as 'wirings'; did you mean 'wiring'"):
        read_content("wirings", "x", {})
