"""What is measured when nobody says more: jobs that take minutes, smaller ones for ``--quick``, and the suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.base.errors import UsageError
from moesim.lab.job import OPERATIONS, ComputeCase, ExchangeCase, Job, LayerCase, OverlapCase
from moesim.lab.patterns import matrix, read_matrix

Shape = tuple[int, int, int, int]
"""Hidden size, expert width, experts, choices of a token."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Sizes that suit a device."""

    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    ep: tuple[int, ...]
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    layer_tokens: int
    layer_shape: Shape
    overlap_rows: tuple[int, ...]
    overlap_sizes: tuple[int, ...]
    repeats: int


def _powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return tuple(found)


CPU = Defaults(
    shapes=((512, 1024, 8, 2), (1024, 2048, 8, 2)),
    tokens=_powers(1, 1024),
    ep=(1,),
    dtypes=("float32",),
    sizes=_powers(64 << 10, 4 << 20, 4),
    layer_tokens=256,
    layer_shape=(512, 512, 16, 2),
    overlap_rows=(32, 128, 512),
    overlap_sizes=(1 << 20, 4 << 20, 16 << 20, 64 << 20),
    repeats=15,
)
CPU_QUICK = Defaults(
    shapes=((256, 256, 8, 2),),
    tokens=(1, 16, 128),
    ep=(1,),
    dtypes=("float32",),
    sizes=(64 << 10, 1 << 20),
    layer_tokens=128,
    layer_shape=(256, 256, 8, 2),
    overlap_rows=(32, 256),
    overlap_sizes=(1 << 20, 8 << 20),
    repeats=5,
)
GPU = Defaults(
    shapes=((7168, 2048, 256, 8), (2048, 1408, 64, 6), (4096, 14336, 8, 2)),
    tokens=_powers(1, 16384),
    ep=(1, 8),
    dtypes=("bfloat16", "float8_e4m3fn"),
    sizes=_powers(1 << 10, 512 << 20, 4),
    layer_tokens=4096,
    layer_shape=(2048, 1408, 64, 6),
    overlap_rows=(512, 4096, 32768),
    overlap_sizes=(4 << 20, 32 << 20, 128 << 20, 512 << 20),
    repeats=20,
)
GPU_QUICK = Defaults(
    shapes=((2048, 1408, 64, 6),),
    tokens=(1, 16, 256, 4096),
    ep=(1,),
    dtypes=("bfloat16",),
    sizes=(64 << 10, 4 << 20, 64 << 20),
    layer_tokens=1024,
    layer_shape=(2048, 1408, 64, 6),
    overlap_rows=(1024, 8192),
    overlap_sizes=(16 << 20, 128 << 20),
    repeats=5,
)


def defaults(device: str, *, quick: bool) -> Defaults:
    """Return the sizes for ``cpu`` or ``cuda``."""
    if device == "cuda":
        return GPU_QUICK if quick else GPU
    return CPU_QUICK if quick else CPU


def compute_cases(
    shapes: Sequence[Shape],
    *,
    tokens: Sequence[int],
    ep: Sequence[int],
    dtypes: Sequence[str],
    distributions: Sequence[str],
    operations: Sequence[str],
    kernels: Sequence[str],
) -> tuple[ComputeCase, ...]:
    """Return a case for every combination that differs: a gate does not depend on skew, nor what moves rows on the kernel.

    Raises
    ------
    UsageError
        If an expert-parallel width divides none of the shapes' experts.
    """
    cases: dict[str, ComputeCase] = {}
    for width in ep:
        if all(shape[2] % width for shape in shapes):
            raise UsageError(f"--ep {width} divides the experts of no shape")
    for hidden, width, experts, top_k in shapes:
        layer = f"{hidden}x{width} top-{top_k} of {experts}"
        for ranks in (item for item in ep if experts % item == 0):
            for dtype in dtypes:
                for operation in operations:
                    still = operation in {"gate", "permute", "unpermute"}
                    number = "bfloat16" if still and dtype == "float8_e4m3fn" else dtype
                    for kernel in kernels[:1] if still else kernels:
                        for distribution in distributions[:1] if operation == "gate" else distributions:
                            for count in tokens:
                                case = ComputeCase(
                                    name=f"{operation} {layer} EP {ranks} {number} {kernel} {distribution} {count} tokens",
                                    operation=operation,
                                    tokens=count,
                                    hidden=hidden,
                                    expert_width=width,
                                    experts=experts,
                                    top_k=top_k,
                                    ep=ranks,
                                    distribution=distribution,
                                    dtype=number,
                                    kernel=kernel,
                                )
                                cases.setdefault(case.name, case)
    return tuple(cases.values())


def exchange_cases(
    ranks: int, *, patterns: Sequence[str], sizes: Sequence[int], postings: Sequence[str], matrices: Sequence[str], seed: int
) -> tuple[ExchangeCase, ...]:
    """Return a case for every pattern × size × posting, and for every matrix × posting.

    Raises
    ------
    UsageError
        If a matrix cannot be read or is not of so many ranks.
    """
    tables: list[tuple[str, str, Any]] = [
        (kind, f"{kind} {size} B", matrix(kind, ranks, size, seed)) for kind in patterns for size in sizes
    ]
    for path in matrices:
        table = read_matrix(Path(path))
        if len(table) != ranks:
            raise UsageError(f"{path}: {len(table)} rows, but there are {ranks} ranks; --ranks {len(table)} fits")
        tables.append((Path(path).stem, f"{Path(path).stem} {int(table.sum())} B in all", table))
    return tuple(
        ExchangeCase(name=f"{name} {posting}", pattern=kind, posting=posting, bytes=tuple(map(tuple, table.tolist())))
        for kind, name, table in tables
        for posting in postings
    )


def layer_cases(
    shape: Shape,
    *,
    tokens: int,
    skews: Sequence[float],
    factors: Sequence[float | None],
    drop: str,
    popularity: str,
    dtype: str,
    kernel: str,
    posting: str,
    backward: bool,
) -> tuple[LayerCase, ...]:
    """Return a case for every skew × capacity factor."""
    hidden, width, experts, top_k = shape
    return tuple(
        LayerCase(
            name=f"skew {skew:g} {'dropless' if factor is None else f'capacity {factor:g}'}",
            tokens=tokens,
            hidden=hidden,
            expert_width=width,
            experts=experts,
            top_k=top_k,
            skew=skew,
            capacity_factor=factor,
            drop=drop,
            popularity=popularity,
            dtype=dtype,
            kernel=kernel,
            posting=posting,
            backward=backward,
        )
        for skew in skews
        for factor in factors
    )


def overlap_cases(
    shape: Shape, ranks: int, *, rows: Sequence[int], sizes: Sequence[int], dtype: str, kernel: str, posting: str
) -> tuple[OverlapCase, ...]:
    """Return a case for every number of rows x size: from experts that outlast the exchange to the other way round.

    Raises
    ------
    UsageError
        If the experts do not divide over the ranks.
    """
    hidden, width, experts, _ = shape
    if experts % ranks:
        raise UsageError(f"{experts} experts cannot be split evenly over {ranks} ranks")
    return tuple(
        OverlapCase(
            name=f"{count} rows beside {size} B",
            rows=count,
            experts=experts // ranks,
            hidden=hidden,
            expert_width=width,
            bytes=size,
            dtype=dtype,
            kernel=kernel,
            posting=posting,
        )
        for count in rows
        for size in sizes
    )


def suite(device: str, *, quick: bool, seed: int, threads: int) -> tuple[Job, Job]:
    """Return the jobs of the lab suite on one device: every kernel under skew, then a whole layer under skew and capacity factors."""
    sizes = defaults(device, quick=quick)
    kernels = compute_cases(
        sizes.shapes,
        tokens=sizes.tokens,
        ep=sizes.ep,
        dtypes=sizes.dtypes,
        distributions=("balanced", "power_law_1.2"),
        operations=OPERATIONS,
        kernels=("auto",),
    )
    layers = layer_cases(
        sizes.layer_shape,
        tokens=sizes.layer_tokens,
        skews=(0.0, 0.6, 1.2),
        factors=(None, 1.0, 1.25, 2.0),
        drop="probs",
        popularity="shuffled",
        dtype="bfloat16" if device == "cuda" else "float32",
        kernel="auto",
        posting="receives_first",
        backward=True,
    )
    return (
        Job(kind="compute", cases=kernels, repeats=sizes.repeats, seed=seed, threads=threads, device=device, graph=device == "cuda"),
        Job(kind="layer", cases=layers, repeats=sizes.repeats, seed=seed, threads=threads, device=device),
    )
