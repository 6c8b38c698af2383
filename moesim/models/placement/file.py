"""A placement that was planned elsewhere: the file that an engine loads, read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Choice, Count, CountOrZero, ReadFile, Text, section
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.model import MOST_EXPERTS, MoeModel
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.static import Once

FORMATS = ("sglang", "tensorrt-llm", "vllm-ascend")


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSlots:
    """What such a file says.

    Parameters
    ----------
    source : str
        The file's name, for messages.
    format : str
        Whose format it has.
    rows : list of str
        For each layer of the file the logical expert in each slot, as numbers separated by spaces; consecutive slots share a rank.
    layers : list of int or None
        The number of each row's layer in the model; None where the format does not say, and rows are all layers or all MoE layers.
    ranks : int or None
        How many ranks share the slots, where the file says so.
    """

    source: Text
    format: Annotated[str, Choice(FORMATS)]
    rows: tuple[Text, ...]
    layers: tuple[CountOrZero, ...] | None = None
    ranks: Count | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and len(self.layers) != len(self.rows):
            raise FieldError("layers", f"{len(self.layers)} layers for {len(self.rows)} rows")
        sizes = set()
        for number, row in enumerate(self.rows):
            words = row.split()
            odd = next((word for word in words if not (word.isascii() and word.isdigit())), None)
            if odd is None:
                odd = next((word for word in words if len(word) > len(str(MOST_EXPERTS))), None)
            if odd is not None:
                raise FieldError("rows", f"row {number}: {odd[:40]!r} is not the number of an expert")
            sizes.add(len(words))
        if len(sizes) != 1:
            raise FieldError("rows", f"every row must have the same number of slots, not {sorted(sizes) or 'none'}")

    def slots(self) -> Ints:
        """Return int[rows, S], the logical expert in each slot."""
        return np.array([row.split() for row in self.rows], dtype=np.int64)

    def of_model(self, model: MoeModel) -> Ints:
        """Return int[L, S], one row for each MoE layer of a model.

        Raises
        ------
        PluginError
            If the file is of a model with other layers.
        """
        slots, wanted = self.slots(), list(model.moe_layers)
        if self.layers is not None:
            row_of = {layer: row for row, layer in enumerate(self.layers)}
            lacking = [layer for layer in wanted if layer not in row_of]
            if lacking:
                raise PluginError(
                    f"placement 'file': {self.source} has no row for layer {lacking[0]}, an MoE layer of {model.name}; it has "
                    f"{len(self.layers)} layers, from {min(self.layers)} to {max(self.layers)}"
                )
            return slots[[row_of[layer] for layer in wanted]]
        if len(slots) == len(wanted):
            return slots
        if len(slots) == model.layers and self.format == "sglang":
            return slots[wanted]
        every = f" or {model.layers}, one for each layer" if self.format == "sglang" and model.layers != len(wanted) else ""
        raise PluginError(
            f"placement 'file': {self.source} has {len(slots)} rows, but {model.name} needs {len(wanted)}, one for each MoE layer{every}"
        )


@register("placement", "file")
@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlacement:
    """Place experts as a file says: one that SGLang, TensorRT-LLM or vllm-ascend loads, from ``moesim place --export`` or elsewhere.

    The file is read when the scenario is loaded, and the resolved scenario holds what was in it as ``slots``. Nothing moves during the run.

    Parameters
    ----------
    path : path or None
        SGLang's ``--init-expert-location`` (JSON with ``physical_to_logical_map``), TensorRT-LLM's ``moe_load_balancer.yaml``, or the
        expert map of vllm-ascend (JSON with ``layer_list``). Which one it is, is seen from its keys.
    slots : section or None
        The content itself, instead of a file.
    """

    path: Annotated[str, ReadFile(reader="placement", into="slots")] | None = None
    slots: WrittenSlots | None = None

    def __post_init__(self) -> None:
        if self.slots is None and self.path is None:
            raise FieldError("path", "a placement from a file needs the file's path, or its content as slots")
        if self.slots is not None and self.path is not None:
            raise FieldError("path", "a placement has either a path or slots, not both")

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the file was not read, or is of another model or another number of ranks.
        """
        if self.slots is None:
            raise PluginError(f"{self.path} was not read: load the scenario with load_scenario, or give the content as slots")
        rows, ranks = self.slots.of_model(setting.model), setting.parallel.ep
        who = f"placement 'file': {self.slots.source}"
        if self.slots.ranks is not None and self.slots.ranks != ranks:
            raise PluginError(f"{who} is for {self.slots.ranks} ranks, but parallel.ep is {ranks}")
        slots = rows.shape[1]
        if slots % ranks:
            fitting = [str(size) for size in range(1, setting.gpus + 1) if slots % size == 0 and setting.gpus % size == 0]
            raise PluginError(
                f"{who} has {slots} slots, which do not divide over ep = {ranks} ranks; choose parallel.ep of {', '.join(fitting)}"
            )
        placement = Placement(expert_of_slot=rows, rank_of_slot=np.arange(slots) // (slots // ranks))
        placement.check(layers=len(rows), experts=setting.model.experts, ranks=ranks, who=who)
        return Once(placement)
