"""What ranks are asked to measure: one JSON file that every rank reads.

A job is cases, how often each is repeated, and how. The order in which cases are visited is drawn anew for every repeat, from the job's
seed, so that a machine that slows down for a while does not hurt one case alone; all ranks draw the same order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.fields import Choice, Count, CountOrZero, Flag, Marker, NotNegative, Number, Positive, Seed, Text
from moesim.base.streams import stream
from moesim.lab.reading import read_record

SCHEMA = 1
POSTINGS = ("receives_first", "library")
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn")
KERNELS = ("auto", "loop", "bmm", "grouped_mm", "scaled_mm_loop", "scaled_grouped_mm")
OPERATIONS = ("moe_ffn", "ffn", "up_proj", "down_proj", "gate", "permute", "unpermute")


@dataclass(frozen=True, slots=True)
class Numbers(Marker):
    """A list of numbers, each at least ``minimum``."""

    minimum: float = 0.0
    whole: bool = False

    def parse(self, value: Any) -> tuple[Any, ...]:
        """Read a list."""
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} is not a list of numbers")  # noqa: TRY004 - the reader turns ValueError into a message
        items = [Number(self.minimum).parse(item) for item in value]
        if self.whole and any(item != int(item) for item in items):
            raise ValueError(f"{list(value)!r} must hold whole numbers")
        return tuple(int(item) if self.whole else item for item in items)

    def json_schema(self) -> dict[str, Any]:
        """Describe the list."""
        return {"type": "array", "items": {"type": "integer" if self.whole else "number", "minimum": self.minimum}}


@dataclass(frozen=True, slots=True)
class Matrix(Marker):
    """A square matrix of bytes."""

    def parse(self, value: Any) -> tuple[tuple[int, ...], ...]:
        """Read a list of rows."""
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("expected a list of rows, one per rank")
        rows = tuple(Numbers(0, whole=True).parse(row) for row in value)
        short = next((number for number, row in enumerate(rows) if len(row) != len(rows)), None)
        if short is not None:
            raise ValueError(f"row {short} has {len(rows[short])} entries where {len(rows)} rows need {len(rows)}")
        return rows

    def json_schema(self) -> dict[str, Any]:
        """Describe the rows."""
        return {"type": "array", "items": Numbers(0, whole=True).json_schema()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeCase:
    """One all-to-all with given split sizes.

    Parameters
    ----------
    name : str
        Unique in the job.
    bytes : matrix of int
        ``bytes[i][j]`` goes from rank i to rank j; the diagonal is a rank's own share, copied locally.
    posting : str
        ``receives_first``: every receive is posted before any send. ``library``: ``all_to_all_single`` as the library does it.
    stagger_s : list of float
        How long after the common start each rank enters; all at once if empty.
    pattern : str
        What the matrix is called in tables.
    """

    name: Text
    bytes: Annotated[tuple[tuple[int, ...], ...], Matrix()]
    posting: Annotated[str, Choice(POSTINGS)] = "receives_first"
    stagger_s: Annotated[tuple[float, ...], Numbers()] = ()
    pattern: Text = "matrix"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCase:
    """One expert-parallel MoE layer.

    Parameters
    ----------
    name : str
        Unique in the job.
    tokens : int
        Tokens of each rank.
    hidden, expert_width : int
        Elements of a token, and of an expert's inner activation (SwiGLU: three matrices of hidden × width).
    experts, top_k : int
        Experts of the layer, a multiple of the number of ranks; choices of a token.
    capacity_factor : float or None
        Rows per source rank and expert: ceil(tokens × top_k / experts × factor), as Megatron-Core has it; None drops nothing.
    drop : str
        ``probs`` keeps the largest gate probabilities, ``position`` the earliest tokens.
    skew : float
        Popularity of experts before the gate's own noise: rank to the power -skew.
    popularity : str
        ``shuffled``: popular experts are anywhere. ``in_order``: expert 0 is the most popular, so rank 0 is the hottest.
    dtype, kernel, posting : str
        Number format of activations and weights, how experts are computed, how all-to-alls are done.
    backward : bool
        Measure the backward pass as well.
    """

    name: Text
    tokens: Count
    hidden: Count
    expert_width: Count
    experts: Count
    top_k: Count
    capacity_factor: Positive | None = None
    drop: Annotated[str, Choice(("probs", "position"))] = "probs"
    skew: NotNegative = 0.0
    popularity: Annotated[str, Choice(("shuffled", "in_order"))] = "shuffled"
    dtype: Annotated[str, Choice(DTYPES[:3])] = "float32"
    kernel: Annotated[str, Choice(KERNELS[:4])] = "auto"
    posting: Annotated[str, Choice(POSTINGS)] = "receives_first"
    backward: Flag = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCase:
    """One kernel of an MoE layer on one device.

    Parameters
    ----------
    name : str
        Unique in the job.
    operation : str
        ``moe_ffn`` (choices, permute, experts, weighted sum), ``ffn`` (experts alone), ``up_proj`` and ``down_proj`` (its grouped GEMMs),
        ``gate`` (linear, softmax, top-k), ``permute``, ``unpermute``.
    tokens : int
        Tokens of the whole expert-parallel group; only the routes of this device's experts are computed.
    hidden, expert_width, experts, top_k, ep : int
        Shape of the layer; the device plays the most loaded of ``ep`` ranks and holds experts / ep experts.
    distribution : str
        ``balanced``, or ``power_law_A`` with an exponent A.
    """

    name: Text
    operation: Annotated[str, Choice(OPERATIONS)]
    tokens: Count
    hidden: Count
    expert_width: Count
    experts: Count
    top_k: Count
    ep: Count = 1
    distribution: Text = "balanced"
    dtype: Annotated[str, Choice(DTYPES)] = "float32"
    kernel: Annotated[str, Choice(KERNELS)] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCase:
    """Experts beside an all-to-all: each alone, then both at once.

    Parameters
    ----------
    name : str
        Unique in the job.
    rows : int
        Rows that a rank computes, dealt evenly to its experts.
    experts, hidden, expert_width : int
        Experts of a rank, and their shape.
    bytes : int
        What a rank sends, its own share included, the same to every rank.
    dtype, kernel, posting : str
        As in a layer.
    """

    name: Text
    rows: Count
    experts: Count
    hidden: Count
    expert_width: Count
    bytes: Count
    dtype: Annotated[str, Choice(DTYPES[:3])] = "float32"
    kernel: Annotated[str, Choice(KERNELS[:4])] = "auto"
    posting: Annotated[str, Choice(POSTINGS)] = "receives_first"


Case = ExchangeCase | LayerCase | ComputeCase | OverlapCase
CASES: dict[str, type[ExchangeCase | LayerCase | ComputeCase | OverlapCase]] = {
    "exchange": ExchangeCase,
    "layer": LayerCase,
    "compute": ComputeCase,
    "overlap": OverlapCase,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that ranks need to know.

    Parameters
    ----------
    kind : str
        ``exchange``, ``layer``, ``compute`` or ``overlap``: of which kind the cases are.
    cases : tuple
        What to measure.
    repeats, warmup : int
        Measured and unmeasured visits of each case.
    seed : int
        Of the order of visits, of weights, tokens and data.
    threads : int
        CPU threads of a rank; 0 leaves it to PyTorch.
    cores : tuple of int
        The core on which each rank is kept; none are kept if empty. More ranks than entries start again at the first.
    backend, device : str
        ``auto`` takes NCCL and CUDA where every rank has a GPU, otherwise gloo and the CPU.
    iterations : int
        Calls between two looks at the clock, in ``exchange`` jobs. 0 decides by size: 20 calls of small messages on GPUs, otherwise 1.
    flows : bool
        Note when each receive ends, by a thread per receive (CPU and ``receives_first`` only).
    reference : int
        In ``layer`` jobs on a CPU, every rank also times its experts on so many rows after every repeat: how fast cores are just then.
    cold : bool
        In ``compute`` jobs, push weights out of the caches before every call.
    graph : bool
        In ``compute`` jobs on a GPU, replay a CUDA graph of the kernel, without the cost of launching from Python.
    timeout_s : float
        How long a rank waits for another before it gives up.
    """

    kind: Annotated[str, Choice(tuple(CASES))]
    cases: tuple[Case, ...]
    repeats: Count = 10
    warmup: CountOrZero = 2
    seed: Seed = 0
    threads: CountOrZero = 1
    cores: Annotated[tuple[int, ...], Numbers(0, whole=True)] = ()
    backend: Annotated[str, Choice(("auto", "gloo", "nccl"))] = "auto"
    device: Annotated[str, Choice(("auto", "cpu", "cuda"))] = "auto"
    iterations: CountOrZero = 0
    flows: Flag = False
    reference: CountOrZero = 0
    cold: Flag = False
    graph: Flag = False
    timeout_s: Positive = 120.0

    def check(self, world: int) -> None:
        """Refuse cases that do not fit ``world`` ranks or each other.

        Raises
        ------
        UsageError
            Naming the case and what is wrong with it.
        """
        if not self.cases:
            raise UsageError(f"the {self.kind} job has no cases")
        names = [case.name for case in self.cases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two cases are called {twice!r}")
        for case in self.cases:
            problem = _problem(case, world)
            if problem:
                raise UsageError(f"case {case.name!r}: {problem}")

    def digest(self) -> str:
        """Return the SHA-256 of the job's text: ranks with different jobs refuse to work together."""
        return hashlib.sha256(to_text(self).encode()).hexdigest()


def _problem(case: Case, world: int) -> str:
    if isinstance(case, ExchangeCase):
        if len(case.bytes) != world:
            return f"its matrix has {len(case.bytes)} rows, but there are {world} ranks"
        if case.stagger_s and len(case.stagger_s) != world:
            return f"it staggers {len(case.stagger_s)} ranks, but there are {world}"
        return ""
    if isinstance(case, OverlapCase):
        if world < 2:
            return "nothing is exchanged by one rank: take two or more"
        return f"{case.bytes} bytes leave nothing for each of {world} ranks" if case.bytes < world else ""
    if case.top_k > case.experts:
        return f"top_k is {case.top_k}, but there are only {case.experts} experts"
    width = case.ep if isinstance(case, ComputeCase) else world
    if case.experts % width:
        return f"{case.experts} experts cannot be split evenly over {width} ranks"
    return ""


def visits(job: Job) -> list[tuple[int, int]]:
    """Return ``(repeat, case)`` in the order of measuring; warm-up has negative repeats."""
    order = [(-1 - again, case) for again in range(job.warmup) for case in range(len(job.cases))]
    for repeat in range(job.repeats):
        order += [(repeat, int(case)) for case in stream(job.seed, "order", repeat).permutation(len(job.cases))]
    return order


def to_text(job: Job) -> str:
    """Write a job as JSON; :func:`from_text` reads it back equal."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(job)}, indent=1, allow_nan=False) + "\n"


def from_text(text: str, where: str = "job") -> Job:
    """Read a job.

    Raises
    ------
    UsageError
        If it is no JSON, of another schema, or a key or value is wrong.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: expected a mapping of keys")
    items = dict(data)
    schema = items.pop("schema", None)
    if schema != SCHEMA:
        raise UsageError(f"{where}: schema {schema!r} is not one that this version reads ({SCHEMA})")
    kind = items.get("kind")
    if kind not in CASES:
        raise UsageError(f"{where}: unknown kind {kind!r}{did_you_mean(str(kind), CASES)}")
    listed: Sequence[Any] | Iterable[Any] = items.get("cases", ())
    if not isinstance(listed, list):
        raise UsageError(f"{where}: cases: expected a list")
    items["cases"] = tuple(read_record(CASES[kind], case, f"{where}: case {number}") for number, case in enumerate(listed))
    return read_record(Job, items, where)
