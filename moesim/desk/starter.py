"""Scenarios to start from: they need no recording and run as they are."""

from __future__ import annotations

import os
from pathlib import Path

from moesim.base.errors import UsageError

_EDITORS = """\
# 'moesim check FILE' finds mistakes; 'moesim list' shows what else could stand here; 'moesim schema' is for editors.
# Quantities have units: 400 Gb/s (bits), 50 GB/s (bytes), 3 us, 80 GiB.
"""

_SMALL = f"""\
# A small question that runs in seconds: what do capacity factors cost and drop on one node?
#
#   moesim run scenario.yaml
#   moesim run scenario.yaml policy.capacity.factor=1.1
#
{_EDITORS}
name: olmoe on one node of 8 H100
seed: 1                          # the same seed gives the same numbers
steps: 6
warmup: 1                        # steps at the start that are run but not measured

model: {{preset: olmoe-1b-7b}}     # or {{config: path/to/config.json}}; 'moesim list models' shows the presets
cluster: {{kind: nvlink_nodes, gpu: h100-sxm, nodes: 1, gpus_per_node: 8}}
parallel: {{ep: 8}}                # ranks that share the experts of a layer
workload: {{phase: training, tokens_per_gpu: 1024}}

# Made-up routing, with experts of unequal popularity. For your own: {{kind: recorded, trace: my-trace.npz}}
routing: {{kind: lognormal, sigma: 0.5}}

policy:
  capacity: {{rule: megatron, factor: 1.25, drop: probs}}
  placement: {{kind: contiguous}}

# Variants of the policy above: each says only what differs. The first is what the others are compared with.
compare:
  dropless: {{capacity: null}}
  tight: {{capacity: {{factor: 1.0}}}}
"""

_TRAINING = f"""\
# Before a training run: what do capacity factors cost and gain when the all-to-all leaves the node?
#
{_EDITORS}
name: deepseek-v2-lite on 2 x 8 H100, EP 16
seed: 1
steps: 10
warmup: 1

model: {{preset: deepseek-v2-lite}}
cluster: {{kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 8, nic: 400 Gb/s}}
parallel: {{ep: 16}}
workload: {{phase: training, tokens_per_gpu: 4096}}
routing: {{kind: router, preset: aux-loss-1b}}

policy:
  capacity: {{rule: megatron, factor: 1.25, drop: probs}}

compare:
  dropless: {{capacity: null}}
  factor-1.0: {{capacity: {{factor: 1.0}}}}
  factor-1.25: {{}}
  factor-1.5: {{capacity: {{factor: 1.5}}}}
"""

_SERVING = f"""\
# Before redeploying a server: how much does unequal load cost in decode, and does another placement help?
#
{_EDITORS}
name: qwen3-30b-a3b decode on 8 H100, EP 8
seed: 1
steps: 20
warmup: 2

model: {{preset: qwen3-30b-a3b}}
cluster: {{kind: nvlink_nodes, gpu: h100-sxm, nodes: 1, gpus_per_node: 8}}
parallel: {{ep: 8}}
workload: {{phase: decode, tokens_per_gpu: 128, context: 4096}}   # one token of each of 128 sequences per GPU
routing: {{kind: router, preset: deepseek-r1}}

policy:
  capacity: null                 # servers drop nothing
  placement: {{kind: contiguous}}

compare:
  contiguous: {{}}
  round-robin: {{placement: {{kind: round_robin}}}}
"""

_STARTERS = {
    "small": ("OLMoE on one node, runs in seconds", _SMALL),
    "training": ("DeepSeek-V2-Lite training on two nodes, four capacity factors", _TRAINING),
    "serving": ("Qwen3-30B-A3B decode on one node, two placements", _SERVING),
}


def starters() -> dict[str, str]:
    """Return what each starter is about, by name."""
    return {name: line for name, (line, _) in _STARTERS.items()}


def starter_text(name: str) -> str:
    """Return the YAML of a starter; ``name`` is a key of :func:`starters`."""
    return _STARTERS[name][1]


def write_starter(path: str | os.PathLike[str], name: str, *, force: bool) -> None:
    """Write a starter to a file.

    Parameters
    ----------
    path : path
        Of the file.
    name : str
        A key of :func:`starters`.
    force : bool
        Whether to write over a file that is there.

    Raises
    ------
    UsageError
        If the file is there and ``force`` is false, or it cannot be written.
    """
    target = Path(path)
    try:
        with target.open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(starter_text(name))
    except FileExistsError:
        raise UsageError(f"{path} is there already; choose another path, or --force to write over it") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"cannot write {path}: {reason.lower()}") from None
