"""Options of ``moesim measure``, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from moesim.base.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn")
KERNELS = ("auto", "loop", "bmm", "grouped_mm", "scaled_mm_loop", "scaled_grouped_mm")
OPERATIONS = ("moe_ffn", "ffn", "up_proj", "down_proj", "gate", "permute", "unpermute")
PATTERNS = ("even", "hot", "zipf", "random", "sparse", "incast")
POSTINGS = ("receives_first", "library")


def common(function: F) -> F:
    """Give a command the options that all measurements share."""
    options = [
        click.option("--quick", is_flag=True, help="Few sizes and repeats: seconds, to see that it works."),
        click.option("-o", "--out", default="out/measure", show_default=True, metavar="FOLDER", help="Where the files go."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."),
        click.option("--repeats", type=click.IntRange(1, 10_000), help="Measured visits of each case; by default 15 (CPU) or 20 (GPU)."),
        click.option("--warmup", type=click.IntRange(0, 1000), default=2, show_default=True, help="Visits before that."),
        click.option("--threads", type=click.IntRange(0, 4096), default=1, help="CPU threads of a rank; default 1; 0: automatic."),
        click.option("--cores", metavar="C,C,...", help="Keep rank 0 on the first core, rank 1 on the second, and so on, in turn."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, tokens and the order."),
        click.option("--timeout", default="30 min", show_default=True, metavar="TIME", help="End all ranks after so long."),
        click.option("--system", default="", metavar="NAME", help="What the tables call this machine; default: its GPU or processor."),
        click.option("--licence", default="not stated", show_default=True, help="Licence of the tables, for those you give them to."),
        click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", help="What to print."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def settings(options: dict[str, Any], device: str, repeats: int) -> dict[str, Any]:
    """Return what options say of every job, whatever it measures."""
    cores = whole("--cores", options["cores"], least=0)
    return {
        "device": device,
        "repeats": options["repeats"] or repeats,
        "warmup": options["warmup"],
        "seed": options["seed"],
        "threads": options["threads"],
        "cores": tuple(cores),
        "timeout_s": min(seconds(options["timeout"]), 300.0),
    }


def seconds(text: str) -> float:
    """Read ``--timeout``."""
    from moesim.base.units import parse_quantity

    try:
        found = parse_quantity(text, "s")
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
    if not 1 <= found <= 1e6:
        raise UsageError(f"--timeout: {text!r} is out of range: it must be from 1 s to 11 days")
    return found


def words(option: str, text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Read a list of known words; nothing if the option was not given."""
    from moesim.base.errors import did_you_mean

    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UsageError(f"{option}: unknown {word!r}{did_you_mean(word, known)}")
    return tuple(dict.fromkeys(words))


def number(option: str, word: str, *, least: float) -> float:
    """Read a number that is at least ``least``."""
    try:
        found = float(word)
    except ValueError:
        raise UsageError(f"{option}: {word.strip()!r} is not a number") from None
    if not least <= found <= 1e6:
        raise UsageError(f"{option}: {word.strip()} is out of range: it must be from {least:g} to 1e6")
    return found


def factor(word: str) -> float:
    """Read one capacity factor."""
    return number("--capacity-factor", word, least=1e-6)


def whole(option: str, text: str | None, *, least: int = 1) -> tuple[int, ...]:
    """Read a list of whole numbers; nothing if the option was not given."""
    if text is None:
        return ()
    numbers = [number(option, word, least=least) for word in text.split(",")]
    if any(number != int(number) for number in numbers):
        raise UsageError(f"{option}: {text!r} must hold whole numbers")
    return tuple(dict.fromkeys(map(int, numbers)))


def shapes(text: str | None) -> tuple[tuple[int, int, int, int], ...]:
    """Read a list of shapes such as 2048x1408x64x6."""
    if text is None:
        return ()
    found = []
    for word in text.split(","):
        parts = word.strip().split("x")
        if len(parts) != 4:
            raise UsageError(f"--shape: {word.strip()!r} is not HIDDENxWIDTHxEXPERTSxTOPK, such as 2048x1408x64x6")
        hidden, width, experts, top_k = (int(whole("--shape", part)[0]) for part in parts)
        found.append((hidden, width, experts, top_k))
    return tuple(found)


def sizes_of(text: str | None) -> tuple[int, ...]:
    """Read a list of sizes such as 64K."""
    if text is None:
        return ()
    from moesim.lab.patterns import buffer_size

    return tuple(dict.fromkeys(buffer_size(word) for word in text.split(",")))
