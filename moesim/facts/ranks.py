"""Ranks that bring unequal batches to a step: how many tokens each has, how much context they read, and what is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Number, ReadFile, Whole, section
from moesim.facts.arrays import Floats, Ints

MOST_TOKENS = 2**20
MOST_CONTEXT = 2**24
"""Every token of a step has a row of choices in memory: what is larger is a slip of the keyboard."""

ALIKE = 1e-6
"""A spread so small that draws would all be alike, and the shape of their law too large a number."""

RankTokens = Annotated[int, Whole(0, MOST_TOKENS)]
RankContext = Annotated[int, Whole(0, MOST_CONTEXT)]


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """What the ranks bring to one recorded step.

    Parameters
    ----------
    tokens : list of int
        Of each rank.
    contexts : list of int
        How many tokens a token of each rank attends to on average; if left out, ``workload.context`` on all.
    """

    tokens: tuple[RankTokens, ...]
    contexts: tuple[RankContext, ...] = ()

    def __post_init__(self) -> None:
        if self.contexts and len(self.contexts) != len(self.tokens):
            raise FieldError("contexts", f"{len(self.contexts)} contexts for {len(self.tokens)} ranks: give one for each, or none")


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Unequal ranks of data-parallel attention: each serves requests of its own, and all meet in every exchange of tokens.

    A rank is a tensor-parallel group of ``parallel.tp`` GPUs, or one GPU. Its attention, dense blocks, gate and shared experts take as
    long as its own tokens and contexts ask for; a rank without requests still joins every exchange. Numbers are given (``tokens``,
    ``contexts``), read from a recording (``file``), or drawn (``variation``, ``context_variation``, ``idle``).

    Parameters
    ----------
    tokens : list of int
        Of each rank in every step; their mean over GPUs, rounded, must be ``workload.tokens_per_gpu``.
    contexts : list of int
        How many tokens a token of each rank attends to on average.
    file : path or null
        A recording in CSV with the columns ``step``, ``rank``, ``tokens`` and, if known, ``context``. Steps are played in their order, and
        again from the first. Its mean, rounded, must be ``workload.tokens_per_gpu``.
    recorded : list of sections
        What the file holds; the loader fills it in.
    variation : float
        Standard deviation of the tokens of ranks over their mean. Drawn from a gamma law, which is an assumption; then scaled so that a
        step has as many tokens as equal ranks would.
    context_variation : float
        Standard deviation of the context of requests over its mean, ``workload.context``; gamma again. A rank has the mean of its
        requests: one for each token in decode, one for each 2 * ``context`` tokens otherwise. So ranks with many requests are alike.
    idle : float
        Share of the ranks that have no requests in a step, rounded to whole ranks; others then have more.
    redraw : str
        ``step``: drawn anew in every step; ``run``: drawn once.
    padding : str
        ``none``: ranks compute what they have. ``maximum``: all compute as many tokens as the fullest, as graphs that were recorded for
        one size demand; what is added reads no context.
    padded_rows : str
        Of padding and dummies. ``masked``: they choose no expert and do not travel. ``alike``: they travel and are computed, and being all
        alike they choose the same experts, 0 to k - 1.
    dummy : int
        Tokens of the dummy batch that a rank without requests computes.

    Notes
    -----
    vLLM: ``padding: maximum`` wherever graphs or two micro-batches are used, ``none`` otherwise (``vllm/v1/worker/dp_utils.py``, commit
    0074614); an idle rank runs a dummy batch of one token (``execute_dummy_batch``). SGLang: ``dummy: 0``, and rows beyond the real tokens
    lose their experts (``num_token_non_padded``). Padding that went to the experts of one rank was vllm-project/vllm-ascend 7297.
    """

    tokens: tuple[RankTokens, ...] = ()
    contexts: tuple[RankContext, ...] = ()
    file: Annotated[str, ReadFile(reader="ranks", into="recorded")] | None = None
    recorded: tuple[RankStep, ...] = ()
    variation: Annotated[float, Number(0.0, 10.0)] = 0.0
    context_variation: Annotated[float, Number(0.0, 10.0)] = 0.0
    idle: Annotated[float, Number(0.0, 1.0)] = 0.0
    redraw: Annotated[str, Choice(("step", "run"))] = "step"
    padding: Annotated[str, Choice(("none", "maximum"))] = "none"
    padded_rows: Annotated[str, Choice(("masked", "alike"))] = "masked"
    dummy: Annotated[int, Whole(0, MOST_TOKENS)] = 0

    def __post_init__(self) -> None:
        given = "tokens" if self.tokens else "recorded" if self.recorded else "file" if self.file is not None else ""
        if self.tokens and (self.recorded or self.file is not None):
            raise FieldError("tokens", "tokens of ranks are either listed here or read from a file, not both")
        if given and (self.variation or self.idle):
            name = "variation" if self.variation else "idle"
            raise FieldError(
                name, f"{name} {getattr(self, name):g} draws the tokens of ranks, but {given} says them already: leave one out"
            )
        if self.contexts and self.context_variation:
            raise FieldError("context_variation", "contexts says what the ranks read already: leave one of the two out")
        if self.contexts and (self.recorded or self.file is not None):
            raise FieldError("contexts", "contexts of a recording belong into its file, as a column context")
        if self.tokens and self.contexts and len(self.tokens) != len(self.contexts):
            raise FieldError("contexts", f"{len(self.contexts)} contexts for {len(self.tokens)} ranks: give one for each")
        if self.tokens and not sum(self.tokens):
            raise FieldError("tokens", "no rank has a token: a step needs at least one")
        if len({len(step.tokens) for step in self.recorded}) > 1:
            raise FieldError("recorded", "every recorded step must name as many ranks as the first")
        if self.recorded and any(not sum(step.tokens) for step in self.recorded):
            raise FieldError("recorded", "a recorded step without a token is no step: leave it out")
        if self.idle == 1.0:
            raise FieldError("idle", "idle 1 leaves no rank with a request: it must be less than 1")

    @property
    def count(self) -> int:
        """How many ranks are named; 0 if any number will do."""
        if self.recorded:
            return len(self.recorded[0].tokens)
        return len(self.tokens) or len(self.contexts)

    @property
    def steady(self) -> bool:
        """Whether ranks have the same tokens in every step."""
        return not self.recorded and (bool(self.tokens) or self.redraw == "run" or not (self.variation or self.idle))

    def mean(self) -> float | None:
        """Return the mean tokens of a rank where they are given; None where they are drawn."""
        steps = [step.tokens for step in self.recorded] or ([self.tokens] if self.tokens else [])
        return float(np.mean(steps)) if steps else None

    def check(self, ranks: int, gpus_of_rank: int, tokens_per_gpu: int) -> None:
        """Refuse numbers of another cluster, or of another workload.

        Parameters
        ----------
        ranks : int
            R.
        gpus_of_rank : int
            GPUs of each.
        tokens_per_gpu : int

        Raises
        ------
        FieldError
            Naming the key and the number that would fit.
        """
        name = "file" if self.recorded else "tokens" if self.tokens else "contexts"
        if self.file is not None and not self.recorded:
            raise FieldError("file", f"{self.file} was not read: load the scenario with load_scenario, or list the tokens")
        if self.count and self.count != ranks:
            of = "" if gpus_of_rank == 1 else f" of {gpus_of_rank} GPUs"
            raise FieldError(name, f"{self.count} ranks are named, but a stage has {ranks} ranks{of}: give one number for each")
        mean = self.mean()
        if (
            mean is not None
            and abs(mean / gpus_of_rank - tokens_per_gpu) > 0.5 + 1e-9
            and not (mean < gpus_of_rank and tokens_per_gpu == 1)
        ):
            fits = max(round(mean / gpus_of_rank), 1)
            raise FieldError(
                name,
                f"the ranks have {mean / gpus_of_rank:g} tokens per GPU on average, but workload.tokens_per_gpu is {tokens_per_gpu}: write "
                f"tokens_per_gpu: {fits}",
            )

    def draw_tokens(self, rng: np.random.Generator, ranks: int, total: int, step: int) -> Ints:
        """Return int[R], the tokens of each rank in a step.

        Parameters
        ----------
        rng : numpy.random.Generator
            For what is drawn.
        ranks : int
            R.
        total : int
            Tokens of all ranks where they are drawn.
        step : int
        """
        if self.recorded:
            return np.asarray(self.recorded[step % len(self.recorded)].tokens, dtype=np.int64)
        if self.tokens:
            return np.asarray(self.tokens, dtype=np.int64)
        resting = rng.permutation(ranks)[: min(round(self.idle * ranks), ranks - 1)]
        shares = rng.gamma(self.variation**-2, size=ranks) if self.variation > ALIKE else np.ones(ranks)
        shares[resting] = 0.0
        if not shares.sum() > 0:  # a gamma law this wide may round to nothing everywhere
            shares[np.setdiff1d(np.arange(ranks), resting)[0]] = 1.0
        return shared_out(shares, total)

    def draw_contexts(self, rng: np.random.Generator, tokens: Ints, context: int, step: int, *, decode: bool) -> Floats:
        """Return float[R], how many tokens a token of each rank attends to on average.

        Parameters
        ----------
        rng : numpy.random.Generator
            For what is drawn.
        tokens : int[R]
            As :meth:`draw_tokens` returns them.
        context : int
            The mean of requests.
        step : int
        decode : bool
            Whether every token is a request.

        Notes
        -----
        The mean of n independent gamma draws of shape a is a gamma draw of shape n a, over n a.
        """
        if self.recorded:
            written = self.recorded[step % len(self.recorded)].contexts
            return np.asarray(written, dtype=np.float64) if written else np.full(len(tokens), float(context))
        if self.contexts:
            return np.asarray(self.contexts, dtype=np.float64)
        if self.context_variation <= ALIKE:
            return np.full(len(tokens), float(context))
        requests = np.maximum(tokens if decode else np.rint(tokens / (2.0 * context)), 1.0)
        shape = requests / self.context_variation**2
        return np.asarray(context * rng.gamma(shape) / shape)

    def computed(self, tokens: Ints, gpus_of_rank: int) -> Ints:
        """Return int[G], the tokens that each GPU computes outside the experts: its own, its dummies, and padding.

        Parameters
        ----------
        tokens : int[G]
            That start on each.
        gpus_of_rank : int
            GPUs of a rank, among which its tokens are divided.
        """
        own = tokens.reshape(-1, gpus_of_rank).sum(axis=1)
        own = np.full_like(own, own.max(initial=0)) if self.padding == "maximum" else np.where(own == 0, self.dummy, own)
        whole = divided(own, gpus_of_rank)
        return np.maximum(whole, tokens)


def shared_out(shares: Floats, total: int) -> Ints:
    """Return int[N], ``total`` things in proportion to shares, rounded by largest remainders.

    Examples
    --------
    >>> shared_out(np.array([1.0, 1.0, 2.0]), 10).tolist()
    [3, 2, 5]
    """
    parts = shares / shares.max()  # so that the smallest float there is does not overflow
    exact = parts * (total / parts.sum())
    whole = np.floor(exact).astype(np.int64)
    rest = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    return np.asarray(whole, dtype=np.int64)


def divided(of_ranks: Ints | Sequence[int], gpus_of_rank: int) -> Ints:
    """Return int[G], the tokens of ranks on their GPUs: equal parts, of which the first are one longer where it does not divide.

    Examples
    --------
    >>> divided([5, 2], 2).tolist()
    [3, 2, 1, 1]
    """
    each, more = np.divmod(np.asarray(of_ranks, dtype=np.int64), gpus_of_rank)
    return np.asarray((each[:, None] + (np.arange(gpus_of_rank) < more[:, None])).ravel(), dtype=np.int64)
