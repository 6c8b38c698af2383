"""Placements as engines load them: SGLang's initial expert location, TensorRT-LLM's load balancer file, vllm-ascend's expert map.

Consecutive slots share a rank in all three. Sources of the formats:

* sgl-project/sglang, ``python/sglang/srt/eplb/expert_location.py``, ``compute_initial_expert_location_metadata`` (01fec5c): JSON with
  ``physical_to_logical_map``, a row for *every* layer of the model (``num_layers=config.num_hidden_layers``), dense ones included.
* NVIDIA/TensorRT-LLM, ``examples/wide_ep/ep_load_balancer/generate_eplb_config.py`` (76a646e) and its README: YAML with
  ``initial_global_assignments``, a row for each MoE layer under its number in the model, ``num_slots`` and ``layer_updates_per_iter``.
* vllm-project/vllm-ascend, ``vllm_ascend/eplb/core/eplb_utils.py``, ``expert_file_to_tensor`` and ``init_eplb_config``, and
  ``vllm_ascend/ops/expert_load_balancer.py`` (1427299): JSON with ``moe_layer_count`` and ``layer_list``, MoE layers counted from 0. An
  expert has one local index on a device, so that no device may hold an expert twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import FieldError, Problem, UsageError, did_you_mean
from moesim.desk.yaml_tree import parse_yaml
from moesim.facts.arrays import Ints
from moesim.models.placement.file import FORMATS, WrittenSlots

LARGEST = 64 * 2**20
"""Bytes of such a file; a larger one is something else by mistake."""

KEYS = {"sglang": "physical_to_logical_map", "tensorrt-llm": "initial_global_assignments", "vllm-ascend": "layer_list"}
"""The key by which each format is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A placement that is to be written.

    Parameters
    ----------
    slots : int[n, S]
        Logical expert in each slot; n MoE layers.
    experts, gpus : int
        E and the ranks that share the slots.
    layers : tuple of int
        The number of each of the n layers in the model.
    model_layers : int
        Layers of the model, dense ones included.
    complete : bool
        Whether these are all MoE layers of the model, as far as is known.
    """

    slots: Ints
    experts: int
    gpus: int
    layers: tuple[int, ...]
    model_layers: int
    complete: bool = True


def exported(planned: Planned, form: str) -> str:
    """Return the content of the file that an engine loads.

    Parameters
    ----------
    planned : Planned
    form : str
        One of ``FORMATS``.

    Raises
    ------
    UsageError
        If the format cannot say this, or there is no such format.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r} of a placement{did_you_mean(form, FORMATS)}")
    if form == "tensorrt-llm":
        return _tensorrt_llm(planned)
    if not planned.complete:
        raise UsageError(f"{form} needs a row for every MoE layer of the model, but only {len(planned.layers)} of them were planned")
    return _sglang(planned) if form == "sglang" else _vllm_ascend(planned)


def _sglang(planned: Planned) -> str:
    # A dense layer has no experts, but its row must be there: SGLang's own start is experts in order, then from 0 again.
    rows = np.tile(np.arange(planned.slots.shape[1]) % planned.experts, (planned.model_layers, 1))
    rows[list(planned.layers)] = planned.slots
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows.tolist())
    return f'{{\n  "physical_to_logical_map": [\n{lines}\n  ]\n}}\n'


def _tensorrt_llm(planned: Planned) -> str:
    rows = "\n".join(f"  {layer}: {json.dumps(row)}" for layer, row in zip(planned.layers, planned.slots.tolist(), strict=True))
    return f"initial_global_assignments:\n{rows}\nlayer_updates_per_iter: 0\nnum_slots: {planned.slots.shape[1]}\n"


def _vllm_ascend(planned: Planned) -> str:
    devices = planned.slots.reshape(len(planned.slots), planned.gpus, -1)
    for layer, of_layer in enumerate(devices):
        for device, held in enumerate(of_layer):
            twice = np.flatnonzero(np.bincount(held) > 1)
            if twice.size:
                raise UsageError(
                    f"vllm-ascend gives an expert one place on a device, but this plan puts expert {int(twice[0])} of MoE layer {layer} "
                    f"twice on device {device}; choose another --kind or another number of --slots"
                )
    layers = [
        {
            "layer_id": number,
            "device_count": planned.gpus,
            "device_list": [{"device_id": device, "device_expert": held} for device, held in enumerate(of_layer)],
        }
        for number, of_layer in enumerate(devices.tolist())
    ]
    lines = ",\n".join(f"    {json.dumps(layer)}" for layer in layers)
    return f'{{\n  "moe_layer_count": {len(layers)},\n  "layer_list": [\n{lines}\n  ]\n}}\n'


class _Wrong(Exception):
    """What is wrong with a file, and in which line where that is known."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


def read_placement(path: str | os.PathLike[str], keys: Mapping[str, Any]) -> tuple[WrittenSlots | None, list[Problem]]:  # noqa: ARG001 - as every reader
    """Read a placement that an engine loads; its format is seen from its keys.

    Parameters
    ----------
    path : path
        Of the file.
    keys : mapping
        The other keys of the section that names the file; none matters.

    Returns
    -------
    slots : WrittenSlots or None
        None where there are problems.
    problems : list of Problem
    """
    shown = os.fspath(path)
    try:
        data = _data(Path(path), shown)
        form = _form(data)
        readers = {"sglang": _read_sglang, "tensorrt-llm": _read_tensorrt_llm, "vllm-ascend": _read_vllm_ascend}
        rows, layers, ranks = readers[form](data)
        return WrittenSlots(source=Path(path).name, format=form, rows=tuple(rows), layers=layers, ranks=ranks), []
    except _Wrong as wrong:
        return None, [Problem(file=shown, line=wrong.line, column=wrong.column, message=wrong.message)]
    except FieldError as error:
        return None, [Problem(file=shown, message=error.message)]


def _data(file: Path, shown: str) -> Any:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _Wrong(f"cannot be read: {reason.lower()}") from None
    if len(content) > LARGEST:
        raise _Wrong(f"is larger than {LARGEST // 2**20} MiB: this is no placement")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Wrong("this is not text; a .pt file must be saved as JSON first", content.count(b"\n", 0, error.start) + 1, 1) from None
    if text.lstrip().startswith("{") and file.suffix not in {".yaml", ".yml"}:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise _Wrong(f"not JSON: {error.msg}", error.lineno, error.colno) from None
        except (ValueError, RecursionError):
            raise _Wrong("not JSON that describes a placement") from None
    tree, problems = parse_yaml(text, shown)
    if problems:
        raise _Wrong(problems[0].message, problems[0].line, problems[0].column)
    return None if tree is None else tree.data()


def _form(data: Any) -> str:
    known = ", ".join(f"{key} ({form})" for form, key in KEYS.items())
    if not isinstance(data, dict):
        raise _Wrong(f"holds no placement: expected a mapping with one of {known}")
    found = [form for form, key in KEYS.items() if key in data]
    if not found and "logical_count" in data:
        raise _Wrong("holds loads (logical_count), not a placement; make one of them with moesim place --loads")
    if len(found) != 1:
        raise _Wrong(f"holds {'no' if not found else 'more than one'} placement: expected one of {known}")
    return found[0]


Read = tuple[list[str], tuple[int, ...] | None, int | None]


def _read_sglang(data: dict[str, Any]) -> Read:
    rows = _listed(data["physical_to_logical_map"], "physical_to_logical_map")
    return [_row(row, f"physical_to_logical_map, row {number}") for number, row in enumerate(rows)], None, None


def _read_tensorrt_llm(data: dict[str, Any]) -> Read:
    given = data["initial_global_assignments"]
    if not isinstance(given, dict) or not given:
        raise _Wrong("initial_global_assignments must map the numbers of layers to lists of experts")
    layers = []
    for layer in given:
        word = str(layer)
        if not (word.isascii() and word.isdigit()):
            raise _Wrong(f"initial_global_assignments: {layer!r} is not the number of a layer")
        layers.append(int(word))
    rows = [_row(row, f"initial_global_assignments, layer {layer}") for layer, row in given.items()]
    stated, slots = data.get("num_slots"), len(rows[0].split())
    if stated is not None and stated != slots:
        raise _Wrong(f"num_slots is {stated!r}, but layer {layers[0]} has {slots} slots")
    return rows, tuple(layers), None


def _read_vllm_ascend(data: dict[str, Any]) -> Read:
    rows, ranks = [], set()
    for number, layer in enumerate(_listed(data["layer_list"], "layer_list")):
        where = f"layer_list, entry {number}"
        devices = _listed(layer.get("device_list") if isinstance(layer, dict) else None, f"{where}: device_list")
        held = [
            _row(device.get("device_expert") if isinstance(device, dict) else None, f"{where}, device {at}: device_expert")
            for at, device in enumerate(devices)
        ]
        if len({len(row.split()) for row in held}) != 1:
            raise _Wrong(f"{where}: the devices hold different numbers of experts")
        rows.append(" ".join(held))
        ranks.add(len(held))
    if len(ranks) != 1:
        raise _Wrong(f"the layers have different numbers of devices: {sorted(ranks)}")
    stated = data.get("moe_layer_count")
    if stated is not None and stated != len(rows):
        raise _Wrong(f"moe_layer_count is {stated!r}, but layer_list has {len(rows)} entries")
    return rows, None, ranks.pop()


def _listed(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"{where}: expected a list with one entry or more")
    return value


def _row(value: Any, where: str) -> str:
    numbers = _listed(value, where)
    odd = next((number for number in numbers if isinstance(number, bool) or not isinstance(number, int) or number < 0), None)
    if odd is not None:
        raise _Wrong(f"{where}: {odd!r} is not the number of an expert")
    return " ".join(map(str, numbers))
