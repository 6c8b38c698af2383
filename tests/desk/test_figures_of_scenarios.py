"""Every scenario that ships gives every figure it should, with the labels that a reader looks for."""

import html
import re
from pathlib import Path

import pytest

from moesim.desk.report.figures import draw
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
TINY = ["steps=2", "warmup=0", "workload.tokens_per_gpu=16"]
ALWAYS = {"bounds", "steps", "phases", "timeline", "experts", "ranks", "traffic", "links", "fabric"}
COMPUTE = {"attention", "router", "experts", "dispatch", "combine"}

# GPUs, switches, link classes with their numbers of links, MoE layers, experts, and the phases beside those that every model has.
#   A mesh has no switch: 8 * 7 links between pairs. One switch has a link out and in of each GPU.
#   2 nodes of 4 behind a leaf each and a spine: 16 NVLink, 16 NIC, 2 up and 2 down. 4 nodes of 8 on 2 leaves: 64, 64 and 2 + 2.
#   A leaf per node, each with a link each way to 8 spines: 4 NVSwitches, 4 leaves and 8 spines, 4 * 8 * 2 uplinks.
#   Mixtral and Qwen3 have neither dense layers nor shared experts; DeepSeek's have both; here DeepSeek-V3 begins with dense ones too.
EXPECTED = {
    "does-a-mesh-hold-mixtral": (8, 0, {"mesh": 56}, 4, 8, set()),
    "does-round-robin-spread-neighbours": (8, 1, {"nvlink": 16}, 26, 64, {"dense layers", "shared experts"}),
    "how-many-gpus-and-which-fabric": (16, 5, {"nvlink": 32, "nic": 32, "uplink": 4}, 6, 128, set()),
    "how-much-does-a-thin-spine-hurt": (32, 7, {"nvlink": 64, "nic": 64, "uplink": 4}, 6, 128, set()),
    "how-skewed-is-decode-in-a-rack": (64, 1, {"nvlink": 128}, 4, 256, {"dense layers", "shared experts"}),
    "is-uniform-routing-realistic": (8, 5, {"nvlink": 16, "nic": 16, "uplink": 4}, 26, 64, {"dense layers", "shared experts"}),
    "what-does-capacity-125-cost": (8, 1, {"nvlink": 16}, 26, 64, {"shared experts"}),
    "what-does-hashing-over-spines-cost": (32, 16, {"nvlink": 64, "nic": 64, "uplink": 64}, 4, 128, set()),
    "what-does-forwarding-save": (32, 5, {"nvlink": 64, "nic": 64}, 2, 256, {"dense layers", "shared experts"}),
    "does-overlap-help": (8, 3, {"nvlink": 16, "nic": 16}, 2, 64, {"dense layers", "shared experts"}),
    "is-rebalancing-worth-it": (8, 3, {"nvlink": 16, "nic": 16}, 2, 64, set()),
    "what-do-unequal-ranks-cost": (16, 3, {"nvlink": 32, "nic": 32}, 2, 256, {"dense layers", "shared experts"}),
    "what-does-imbalance-cost": (8, 3, {"nvlink": 16, "nic": 16}, 2, 64, set()),
    "what-does-padding-cost": (8, 1, {"nvlink": 16}, 4, 8, set()),
    "what-does-real-routing-cost": (8, 5, {"nvlink": 16, "nic": 16, "uplink": 4}, 26, 64, {"dense layers", "shared experts"}),
    "how-does-balancing-develop": (4, 1, {"nvlink": 8}, 2, 16, set()),
    "do-trainings-develop-as-recorded": (4, 1, {"nvlink": 8}, 4, 16, set()),
    "which-balancing-strength": (4, 1, {"nvlink": 8}, 2, 16, set()),
    "which-policy-for-which-imbalance": (8, 5, {"nvlink": 16, "nic": 16, "uplink": 4}, 26, 64, {"dense layers", "shared experts"}),
    "which-policy-for-a-recorded-trace": (8, 5, {"nvlink": 16, "nic": 16, "uplink": 4}, 26, 64, {"dense layers", "shared experts"}),
    "which-capacity-factor": (8, 1, {"nvlink": 16}, 26, 64, {"dense layers", "shared experts"}),
}


def labels(svg: str) -> list[str]:
    return [html.unescape(re.sub(r"<[^>]*>", "", found)) for found in re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.DOTALL)]


def test_every_scenario_is_expected():
    assert {path.stem for path in SCENARIOS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_and_their_labels(name):
    gpus, switches, classes, layers, experts, more_phases = EXPECTED[name]
    result = simulate(load_scenario(SCENARIOS / f"{name}.yaml", TINY), read_trace=read_trace)
    drawings = draw(result)
    dropped = result.tables["layers"]["dropped"].sum()
    assert set(drawings) == ALWAYS | ({"drops"} if dropped else set())
    text = {which: labels(drawing.svg) for which, drawing in drawings.items()}

    # The bars of the step time say what they are, the predicted one first.
    said = [line.split(":")[0] for line in text["bounds"] if ":" in line]
    assert said == ["predicted", "if perfectly balanced", "if communication were free"]
    # Every MoE layer and every expert of the model is there, and the axes are named.
    assert f"Heat map of {layers} MoE layers by {experts} experts" in drawings["experts"].alt
    assert f"Heat map of {gpus} GPUs by {layers} MoE layers" in drawings["ranks"].alt
    assert {"logical expert", "MoE layer"} <= set(text["experts"])
    assert {"MoE layer", "GPU"} <= set(text["ranks"])
    assert {"destination GPU", "source GPU"} <= set(text["traffic"])
    assert any(line.startswith("GPU") for line in text["phases"])
    # A legend entry for each phase that takes time; both steps are there.
    legend = {label for label, *_ in drawings["phases"].legend}
    assert COMPUTE | more_phases <= legend <= COMPUTE | more_phases | {"waiting for peers", "idle"}
    assert {"0", "1", "step"} <= set(text["steps"])
    # Classes of links with how many there are.
    found = dict(re.fullmatch(r"(.+) \((\d+)\)", line).groups() for line in text["links"] if re.fullmatch(r".+ \(\d+\)", line))
    assert {link_class: int(count) for link_class, count in found.items()} == classes
    # Every switch has its name in the drawing of the fabric, where names fit.
    assert f"{gpus} GPUs and {switches} switches" in drawings["fabric"].alt
    graph = result.facts["graph"]
    for vertex, kind, _ in graph["nodes"]:
        assert kind == "gpu" or vertex.replace(":", " ") in text["fabric"]
    if gpus == 8:
        assert {str(gpu) for gpu in range(8)} <= set(text["fabric"])
    if "drops" in drawings:
        assert "MoE layer" in text["drops"]
        assert any(line.endswith(" %") for line in text["drops"])
