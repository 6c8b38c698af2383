"""Tensor parallelism: what a group of neighbouring GPUs gathers before its blocks or its experts, and adds up after them."""

from __future__ import annotations

from dataclasses import replace

from moesim.base.errors import PluginError
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, Program, Work
from moesim.facts.scenario import Parallel
from moesim.models.schedule.weaving import woven

BLOCKS = ("attention", "dense", "shared")
"""The phases that are cut. The router and the routed experts work on a GPU's own tokens."""


def with_tensor_parallelism(program: Program, parallel: Parallel) -> Program:
    """Return a program whose cut blocks stand between the operations of their tensor-parallel group.

    ``sequence``: an all-gather of the tokens before each block and a reduce-scatter of its results after it; backward, the gradients are
    gathered first and scattered last (Korthikanti et al., arXiv:2205.05198, section 4.2.2: g and its conjugate). ``replicated``: an
    all-reduce after attention and dense blocks, and an all-gather at the end of a layer with experts, whose shared experts are whole.

    Parameters
    ----------
    program : Program
    parallel : Parallel
    """
    before: dict[int, list[Work]] = {}
    after: dict[int, list[Work]] = {}
    for index, task in enumerate(program.tasks):
        work = task.work
        if parallel.tensor == "sequence":
            if work.phase in BLOCKS:
                before[index] = [replace(work, phase=f"{work.phase}_gather")]
                after[index] = [replace(work, phase=f"{work.phase}_scatter")]
        elif work.phase in {"attention", "dense"}:
            after[index] = [replace(work, phase=f"{work.phase}_reduce")]
        elif work.phase == "combine":
            after[index] = [replace(work, phase="tokens_gather")]
    return woven(program, before, after)


def with_expert_tensor_parallelism(program: Program, parallel: Parallel) -> Program:
    """Return a program in which GPUs that share experts gather the rows that arrived at each, and add up their parts of the results.

    After tokens (backward: gradients of results) have come to an expert, an all-gather of the rows; before results (backward: gradients of
    rows) leave, a reduce-scatter. So in NVIDIA/Megatron-LM, ``MoEAlltoAllTokenDispatcher`` (``megatron/core/transformer/moe/
    token_dispatcher.py``): what is gathered forward is scattered backward, and the other way round. With ``tensor: replicated`` the GPUs
    have the same tokens already, and nothing is gathered.

    Parameters
    ----------
    program : Program
    parallel : Parallel
    """
    before: dict[int, list[Work]] = {}
    after: dict[int, list[Work]] = {}
    for index, task in enumerate(program.tasks):
        work = task.work
        back = work.direction == BACKWARD
        if work.phase == ("combine" if back else "dispatch") and parallel.tensor == "sequence":
            after[index] = [replace(work, phase="experts_gather")]
        elif work.phase == ("dispatch" if back else "combine"):
            before[index] = [replace(work, phase="experts_scatter")]
    return woven(program, before, after)


def operation_of(work: Work) -> str:
    """Return the operation of a work of ``TENSOR_CALLS``."""
    ending = work.phase.rsplit("_", 1)[1]
    return {"gather": "all_gather", "scatter": "reduce_scatter", "reduce": "all_reduce"}[ending]


def is_cut(work: Work, parallel: Parallel) -> bool:
    """Tell whether a work is that of one of ``tp`` GPUs on the tokens of all of them."""
    phase = "attention" if work.phase == "attention_core" else work.phase
    return parallel.tp > 1 and phase in (BLOCKS if parallel.tensor == "sequence" else BLOCKS[:2])


def cut_model(model: MoeModel, tensor: int) -> MoeModel:
    """Return the part of a model's blocks that one of ``tensor`` GPUs computes; its experts and its router are whole.

    Keys and values are divided too, as heads are; a latent cache (MLA) and fewer heads of keys and values than GPUs are in fact held by
    several of them.
    """
    if tensor == 1:
        return model
    block = model.attention
    attention = replace(
        block,
        heads=block.heads // tensor,
        projection_parameters=-(-block.projection_parameters // tensor),
        cache_bytes_per_token=-(-block.cache_bytes_per_token // tensor),
    )
    return replace(model, attention=attention, dense_width=model.dense_width // tensor, shared_width=model.shared_width // tensor)


def check_tensor(model: MoeModel, parallel: Parallel, phase: str) -> None:
    """Refuse a tensor parallelism that cannot cut the model.

    Raises
    ------
    PluginError
        Naming the number that it does not divide.
    """
    for name, value in (
        ("attention.heads", model.attention.heads), ("dense_width", model.dense_width), ("shared_width", model.shared_width)
    ):  # fmt: skip
        if value % parallel.tp:
            raise PluginError(f"tp = {parallel.tp} does not divide the model's {name} = {value}: choose a tp that divides it")
    if parallel.tensor == "replicated" and phase == "training":
        raise PluginError("tensor: replicated has no backward pass here: write parallel.tensor: sequence for training")
