"""What a scenario file means: the sections every file has. Plug-ins bring their own keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Count, CountOrZero, Flag, Number, Seconds, Seed, Text, Whole, section
from moesim.base.registry import PluginOf, plugin
from moesim.base.streams import stream
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.model import MoeModel
from moesim.facts.plan import Plan, Sensitivity
from moesim.facts.ranks import MOST_CONTEXT, MOST_TOKENS, Ranks, divided
from moesim.facts.trace import Trace
from moesim.facts.training import Training
from moesim.facts.uncertainty import Uncertainty

N = TypeVar("N", NDArray[np.int64], NDArray[np.float64])

MOST_STEPS = 10**6
"""Every step has rows in each table: what is larger is a slip of the keyboard."""


def _default(slot: str, kind: str) -> Callable[[], Any]:
    def make() -> Any:
        return plugin(slot, kind)()

    return make


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How the model is spread: ``pp`` stages of consecutive GPUs, in each groups of ``ep`` ranks that share the experts of a layer.

    Parameters
    ----------
    ep : int
        Expert-parallel ranks of a group; divides the number of GPUs of a stage. GPU g belongs to group g // ep.
    tp : int
        Neighbouring GPUs that share the attention, the dense blocks and the shared experts of ``tp`` GPUs' tokens. It cuts none of
        the routed experts, so expert-parallel groups may lie across or inside tensor-parallel ones.
    pp : int
        Stages of a pipeline; divides the number of GPUs, and the schedule must play them (``pipeline``).
    tensor : str
        What a tensor-parallel group does around its blocks. ``sequence``: gather its tokens before, add up and scatter after, so that
        each GPU has its own between blocks (Megatron-LM's sequence parallelism). ``replicated``: add up after, so that all have all of
        them, and gather again after the experts (vLLM); only without a backward pass.
    etp : int
        Neighbouring GPUs that share each of their experts, every one with an equal part of its inner width (Megatron-Core's
        ``--expert-tensor-parallel-size``); ``ep * etp`` divides the number of GPUs of a stage. 1: an expert is whole on its GPU.
        An expert-parallel group are then the GPUs of equal place in ``ep`` such neighbourhoods, and sources deal tokens group after group.
    cp : int
        GPUs that share one sequence. Only 1 is simulated: no context parallelism.
    """

    ep: Count
    tp: Count = 1
    pp: Count = 1
    tensor: Annotated[str, Choice(("sequence", "replicated"))] = "sequence"
    etp: Count = 1
    cp: Count = 1

    def __post_init__(self) -> None:
        if self.etp > 1 and self.tensor == "replicated" and (self.ep > 1 or self.tp % self.etp):
            raise FieldError(
                "etp",
                f"etp = {self.etp} with tensor: replicated cuts all experts over GPUs that have the same tokens (vLLM without expert "
                f"parallelism): that needs ep = 1 and an etp that divides tp, not ep = {self.ep} and tp = {self.tp}; else tensor: sequence",
            )
        if self.cp > 1:
            raise FieldError(
                "cp",
                f"context parallelism of {self.cp} is not simulated, for a sequence is whole on its GPU or its tensor-parallel group: "
                "write cp: 1, or use tp",
            )

    @property
    def block(self) -> int:
        """Consecutive GPUs that hold every expert of a layer once."""
        return self.ep * self.etp

    def numbers(self, gpus: int) -> Ints:
        """Return int[G], the number of each GPU of a cluster in the order of expert-parallel groups, one group after another.

        Examples
        --------
        >>> Parallel(ep=2, etp=2).numbers(8).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
        >>> Parallel(ep=4).numbers(4).tolist()
        [0, 1, 2, 3]
        """
        in_order: Ints = np.arange(gpus)
        return in_order if self.etp == 1 else in_order.reshape(-1, self.ep, self.etp).transpose(0, 2, 1).ravel()

    def places(self, gpus: int) -> Ints:
        """Return int[G], where each GPU of a cluster stands in that order."""
        return np.argsort(self.numbers(gpus))


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a step is.

    ``training`` runs forward and backward; ``prefill`` and ``decode`` run forward only. ``context`` is how many tokens a token
    attends to on average.

    Parameters
    ----------
    phase : str
        In ``decode`` every token belongs to another sequence and reads its own keys and values.
    tokens_per_gpu : int
        Tokens that start on each GPU in a step, with unequal ranks on average; at most 2**20 = 1,048,576.
    context : int
        How many tokens a token attends to on average; at most 2**24 = 16,777,216.
    ranks : section or None
        What each rank brings to a step where they do not all bring the same.
    """

    phase: Annotated[str, Choice(("training", "prefill", "decode"))] = "training"
    tokens_per_gpu: Annotated[int, Whole(1, MOST_TOKENS)]
    context: Annotated[int, Whole(1, MOST_CONTEXT)] = 2048
    ranks: Ranks | None = None


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How exactly the flows of bytes share links: max-min fairly between all events, or a little less often.

    Parameters
    ----------
    mode : str
        ``exact``: fair rates after every start and end. ``fast`` and ``coarse``: once per quantum; in between, a link hands what an ended
        flow leaves to its other flows, and other links hear of it at the next quantum. ``bound``: every link works off its bytes as if
        nothing else held them up. ``auto``: ``exact`` up to 20,000 flows at once, ``fast`` above.
    quantum : float or None
        Length of a quantum as a share of the time that the flows still need; if left out, 0.01 in ``fast`` and 0.03 in ``coarse``.
    guard : float or None
        A quantum is cut short when a link's flows would speed up by more than this factor; 0 for never. If left out, 2 in ``fast`` and 0 in
        ``coarse``.
    verify : bool
        Play a sample of the busy periods of the network again, exactly, and report by how much they were off.
    repeats : bool
        Traffic that an idle network has carried before is not worked out again. Times are the same to the last bit; bytes and seconds of
        links, which are sums, to about 1e-15 of them.
    """

    mode: Annotated[str, Choice(("auto", "exact", "fast", "coarse", "bound"))] = "auto"
    quantum: Annotated[float, Number(1e-6, 1.0)] | None = None
    guard: Annotated[float, Number(0.0)] | None = None
    verify: Flag = False
    repeats: Flag = True


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """How a new placement takes effect while the run goes on.

    Parameters
    ----------
    mode : str
        ``sync``: nothing runs until all weights have moved. ``async``: steps go on; one layer at a time its weights travel
        over the same links, and from the step after it has all of them a layer uses its new placement. ``free``: a new placement holds at
        once and costs nothing, which no system can do: what the others gain at most.
    planner_time : time
        What planning takes. In ``sync`` nothing runs meanwhile; in ``async`` the first layer moves that much later. 0 if left out: measure
        yours with ``moesim place --time``.
    optimiser : bool
        Training moves optimiser states and gradients with the weights (16 B per parameter more); if false, the weights alone.
    """

    mode: Annotated[str, Choice(("sync", "async", "free"))] = "sync"
    planner_time: Seconds = 0.0
    optimiser: Flag = True


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that balances load, in the order in which it acts on a token.

    Parameters
    ----------
    gate : plug-in
        Which experts a token chooses.
    capacity : plug-in
        Which of these routes are kept; ``null`` is dropless.
    placement : plug-in
        Which rank holds which expert.
    rebalance : section
        How a new placement takes effect during a run.
    dispatch : plug-in
        Which replica of an expert a route uses.
    """

    gate: Annotated[Any, PluginOf("gate", "as_given")] = field(default_factory=_default("gate", "as_given"))
    capacity: Annotated[Any, PluginOf("capacity")] = field(default_factory=_default("capacity", "dropless"))
    placement: Annotated[Any, PluginOf("placement", "contiguous")] = field(default_factory=_default("placement", "contiguous"))
    rebalance: Rebalance = field(default_factory=Rebalance)
    dispatch: Annotated[Any, PluginOf("dispatch", "even")] = field(default_factory=_default("dispatch", "even"))


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question: this model on that cluster, with this routing and that policy, for so many steps.

    Parameters
    ----------
    name : str
        Of the question; also names the folder of results.
    seed : int
        Of all random numbers. The same scenario with the same seed gives the same results.
    steps : int
        Steps that are run; at most 1,000,000.
    warmup : int
        How many of the first steps are not measured.
    model : section
        What runs.
    cluster : plug-in
        Where it runs.
    parallel : section
        How it is spread over GPUs.
    workload : section
        What a step is.
    routing : plug-in
        Where the tokens' choices come from.
    exchange : plug-in
        How tokens travel to their experts and back.
    compute : plug-in
        How long kernels take.
    schedule : plug-in
        What waits for what.
    training : section or None
        Recomputation and the update of the weights; if left out, neither is part of a step.
    sharing : section
        How exactly links are shared.
    policy : section
        What balances the load.
    compare : mapping
        Named variants of the policy; each says only what differs from it.
    plan : section
        What ``moesim plan`` chooses from, and what the choice must achieve.
    sensitivity : section
        What ``moesim sensitivity`` varies, and how far.
    uncertainty : section or None
        Whether intervals contain the uncertainty of fitted parameters.
    matrix : mapping
        Values of dotted keys; ``moesim sweep`` runs every combination of them.
    plugins : list of path
        Python files with plug-ins of your own, relative to this file.
    """

    name: Text
    seed: Seed = 0
    steps: Annotated[int, Whole(1, MOST_STEPS)] = 1
    warmup: CountOrZero = 0
    model: MoeModel
    cluster: Annotated[Any, PluginOf("topology")]
    parallel: Parallel
    workload: Workload
    routing: Annotated[Any, PluginOf("source")]
    exchange: Annotated[Any, PluginOf("exchange", "direct")] = field(default_factory=_default("exchange", "direct"))
    compute: Annotated[Any, PluginOf("compute", "grouped_gemm")] = field(default_factory=_default("compute", "grouped_gemm"))
    schedule: Annotated[Any, PluginOf("schedule", "sequential")] = field(default_factory=_default("schedule", "sequential"))
    training: Training | None = None
    sharing: Sharing = field(default_factory=Sharing)
    policy: Policy = field(default_factory=Policy)
    compare: Mapping[str, Policy] = field(default_factory=dict)
    plan: Plan | None = None
    sensitivity: Sensitivity | None = None
    uncertainty: Uncertainty | None = None
    matrix: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise FieldError("warmup", f"warmup ({self.warmup}) leaves none of the {self.steps} steps to measure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a plug-in may know when a run begins: the world, not the future.

    GPUs stand in the order of expert-parallel groups, and the model's experts are as wide as a GPU's part of one: both differ from what the
    scenario says under expert tensor parallelism only (:func:`moesim.models.stages.setting_of`).

    ``read_trace(path)`` reads a recording; ``read_trace(path, task=...)`` chooses one of the tasks that a file of counts may hold.
    """

    cluster: Cluster
    model: MoeModel
    parallel: Parallel
    workload: Workload
    seed: int
    read_trace: Callable[..., Trace]
    training: Training | None = None

    @property
    def gpus(self) -> int:
        """G."""
        return self.cluster.gpus

    @property
    def groups(self) -> int:
        """Expert-parallel groups of all stages; each holds every expert of its layers, or the same part of each."""
        return self.cluster.gpus // self.parallel.ep

    @property
    def expert_copies(self) -> int:
        """GPUs that hold the same experts, or the same part of them, if there are no redundant ones and no stages."""
        return self.cluster.gpus // self.parallel.block

    def rng(self, *names: str | int) -> np.random.Generator:
        """Return the random stream of these names under the scenario's seed."""
        return stream(self.seed, *names)

    def tokens_of_gpus(self, step: int) -> Ints:
        """Return int[G], the tokens that start on each GPU in a step.

        Parameters
        ----------
        step : int
            Unequal ranks (``workload.ranks``) may have other tokens in every step.

        Returns
        -------
        int[G]
            The same for every layer.
        """
        each, ranks, tensor = self.workload.tokens_per_gpu, self.workload.ranks, self.parallel.tp
        if ranks is None:
            return np.full(self.gpus, each, dtype=np.int64)
        ranks.check(self.gpus // tensor, tensor, each)
        tokens = divided(ranks.draw_tokens(self._of_ranks("tokens", step), self.gpus // tensor, self.gpus * each, step), tensor)
        return tokens[self.parallel.numbers(self.gpus)]

    def token_start(self, step: int) -> Ints:
        """Return int[G + 1], the bounds of each GPU's tokens among those of a step."""
        return np.concatenate(([0], np.cumsum(self.tokens_of_gpus(step)))).astype(np.int64)

    def contexts_of_gpus(self, step: int) -> Floats:
        """Return float[G], how many tokens a token of each GPU attends to on average in a step."""
        workload, tensor = self.workload, self.parallel.tp
        if workload.ranks is None:
            return np.full(self.gpus, float(workload.context))
        numbers, places = self.parallel.numbers(self.gpus), self.parallel.places(self.gpus)
        tokens = self.tokens_of_gpus(step)[places].reshape(-1, tensor).sum(axis=1)
        contexts = workload.ranks.draw_contexts(
            self._of_ranks("contexts", step), tokens, workload.context, step, decode=workload.phase == "decode"
        )
        return np.repeat(contexts, tensor)[numbers]

    def computed_tokens(self, tokens: Ints) -> Ints:
        """Return int[G], the tokens that GPUs compute outside the experts where so many are their own: padding and dummies included."""
        if self.workload.ranks is None:
            return tokens
        numbers, places = self.parallel.numbers(len(tokens)), self.parallel.places(len(tokens))
        return self.workload.ranks.computed(tokens[places], self.parallel.tp)[numbers]

    def of_tensor_groups(self, values: N) -> N:
        """Return [G], for each GPU the sum over its tensor-parallel group.

        Parameters
        ----------
        values : int[G] or float[G]
        """
        tensor = self.parallel.tp
        if tensor == 1:
            return values
        numbers, places = self.parallel.numbers(len(values)), self.parallel.places(len(values))
        return np.repeat(values[places].reshape(-1, tensor).sum(axis=1), tensor)[numbers]

    def _of_ranks(self, what: str, step: int) -> np.random.Generator:
        """Return the stream of what is drawn for ranks."""
        ranks = self.workload.ranks
        return self.rng("ranks", what, step if ranks is None or ranks.redraw == "step" else "run")
