"""Trace files: recorded routing on disk.

Three layouts are read. Nothing is ever unpickled.

* NPZ of tokens: ``ids`` int[N, L, k]; optionally ``gate`` float[N, L, k], ``scores`` float[N, L, E], ``sample_len`` int[...], ``step``,
  ``source``, ``domain`` and ``words`` int[N], ``ranks`` and ``experts`` (numbers), ``layers`` (their numbers in the model), ``readme``
  (text).
* NPZ of counts: ``counts`` int[...] and ``axes``, the names of its dimensions among step, layer, source, expert; optionally ``top_k``,
  ``experts``, ``ranks``, ``layers``, ``readme``, and the routes from the tokens of each domain: ``domain_counts`` int[steps, L, D, E]
  (-1 in steps in which they were not noted), or, as ``moesim measure training`` writes them, ``domain_routes`` int[n, L, D, E] with their
  steps ``looked_at`` int[n] and those of the counts ``recorded_at`` int[steps].
* CSV of counts: columns layer, expert, token_count and optionally task, step, source; lines that start with ``#`` are comments.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import TraceError, UsageError
from moesim.desk.folder import put
from moesim.desk.trace_checks import counts_trace, tokens_trace
from moesim.desk.trace_place import Where
from moesim.desk.trace_size import check_size
from moesim.desk.trace_table import read_table
from moesim.facts.trace import Trace
from moesim.models.source.traces import named

KNOWN = (
    "ids", "gate", "scores", "sample_len", "step", "source", "domain", "ranks", "experts", "layers", "readme", "counts", "axes", "top_k",
    "words", "domain_counts", "domain_routes", "looked_at", "recorded_at",
)  # fmt: skip


def read_trace(path: str | os.PathLike[str], *, task: str | None = None) -> Trace:
    """Read a trace file and check all of it.

    Parameters
    ----------
    path : path
        An NPZ or CSV file in one of the layouts above; which one is seen from its content.
    task : str, optional
        Which task, for a CSV that holds several.

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        If the file is missing, damaged, or breaks its layout; the message names the array, the place and the value.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
    except FileNotFoundError:
        raise TraceError(f"{file}: there is no such file; a path in a scenario is relative to the scenario's own folder") from None
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise TraceError(f"{file}: the file is empty")
    if head.startswith(b"PK"):
        if task is not None:
            raise TraceError(f"{file}: an NPZ file holds one recording, not several tasks; leave out task ({task!r})")
        return named(_read_npz(file))
    if file.suffix == ".npz":
        raise TraceError(f"{file}: not an NPZ archive, whatever its name says; write it with numpy.savez or moesim trace synth")
    if file.suffix in {".csv", ".txt"}:
        return named(read_table(file, task))
    raise TraceError(
        f"{file}: neither an NPZ archive nor a CSV table; convert it to NPZ with the array ids [tokens, layers, k] "
        "(files of Python pickles, such as .pt and .pkl, are never opened: they can run code)"
    )


def _read_npz(file: Path) -> Trace:
    where = Where(file.name, str(file))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            where.names(list(archive.files), KNOWN)
            check_size(archive.zip, KNOWN, where)
            for name in archive.files:
                if name in KNOWN:
                    arrays[name] = _member(archive, name, where)
    except zipfile.BadZipFile as error:
        raise TraceError(f"{file}: the archive is damaged or cut short ({error}); copy or record it again") from error
    except (OSError, ValueError, EOFError) as error:
        raise TraceError(f"{file}: the archive cannot be read ({error}); copy or record it again") from error
    if "ids" in arrays and "counts" in arrays:
        raise where.error("counts", "there are tokens (ids) and counts in one file; keep one of the two")
    if "ids" in arrays:
        return tokens_trace(arrays, where)
    if "counts" in arrays:
        return counts_trace(arrays, where)
    raise where.error(
        "ids", f"missing; the file holds {', '.join(sorted(arrays)) or 'nothing that is known'}: a trace has either ids or counts"
    )


def _member(archive: Any, name: str, where: Where) -> NDArray[Any]:
    try:
        array = archive[name]
    except (zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise where.error(name, f"damaged or cut short ({error}); copy or record the file again") from error
    except MemoryError as error:
        raise where.error(name, "too large for the memory of this machine") from error
    except (ValueError, OSError, KeyError) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise where.error(name, "holds Python objects, which are never unpickled; save plain numbers of one shape") from error
        raise where.error(name, f"cannot be read ({error}); save it with numpy.savez") from error
    if not isinstance(array, np.ndarray):
        raise where.error(name, "not a NumPy array; save it with numpy.savez")
    array.flags.writeable = False
    return array


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as NPZ, whole or not at all, in the same bytes every time.

    Parameters
    ----------
    trace : Trace
        Read back, it is equal but for its name (law L13).
    path : path
        Must end in ``.npz``. An existing file is replaced.

    Raises
    ------
    UsageError
        If the name does not end in ``.npz``.
    ResultError
        If the file cannot be written; nothing is left behind.
    """
    file = Path(path)
    if file.suffix != ".npz":
        raise UsageError(f"{file}: a trace is written as NPZ; name the file {file.stem}.npz")
    put(file, npz(_arrays(trace)))


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of an NPZ file that holds ``arrays``: the same bytes every time."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # no clock in results
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, 6)
    return whole.getvalue()


def _arrays(trace: Trace) -> dict[str, NDArray[Any]]:
    found: dict[str, Any] = {
        "ids": trace.ids,
        "gate": trace.weights,
        "scores": trace.scores,
        "sample_len": trace.sample_length,
        "step": trace.step,
        "source": trace.source,
        "domain": trace.domain,
        "words": trace.words,
        "ranks": trace.ranks if trace.source is not None else None,
        "layers": trace.layer_numbers,
        "experts": trace.experts if trace.experts_stated else None,
        "readme": trace.origin or None,
    }
    if trace.counts is not None:
        found["counts"] = trace.counts if trace.by_source else trace.counts[:, :, 0]
        found["axes"] = ["step", "layer", *(["source"] if trace.by_source else []), "expert"]
        found["top_k"] = trace.top_k or None
        found["domain_counts"] = trace.domain_counts
    return {name: np.asarray(value) for name, value in found.items() if value is not None}
