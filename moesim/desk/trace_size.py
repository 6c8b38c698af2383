"""Refuse a trace that would not fit into memory, before memory is asked for."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from moesim.base.errors import TraceError
from moesim.base.units import format_quantity
from moesim.desk.trace_place import Where

LARGEST_BYTES = 4 * 2**30
"""The arrays of a trace together, unpacked."""

LARGEST_HEADER = 2**16
"""Of an array in an archive: type and shape in words take about a hundred bytes."""


def check_size(archive: zipfile.ZipFile, names: Sequence[str], where: Where) -> None:
    """Refuse an NPZ archive whose arrays are too large unpacked, or not as large as they claim.

    A packed megabyte can hold a gigabyte of zeros, and a header of a hundred bytes can claim any shape: NumPy asks for all of that memory
    before it reads an element.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Only its directory and the headers of its arrays are read.
    names : sequence of str
        The arrays that will be read; others do not count.
    where : Where
        The file, for messages.

    Raises
    ------
    TraceError
        Naming the array, its size and the limit.
    """
    total = 0
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name not in names:
            continue
        claimed = _claim(archive, entry, name, where)
        total += max(claimed, entry.file_size)
        if total > LARGEST_BYTES:
            raise too_large(where.error, name, total)
        if claimed > entry.file_size:
            raise where.error(
                name, f"claims {format_quantity(claimed, 'B')} and holds {entry.file_size} bytes: cut short; copy or record the file again"
            )


def too_large(error: Callable[[str, str], TraceError], name: str, size: int) -> TraceError:
    """Return the refusal of a trace that takes ``size`` bytes from this array on."""
    return error(
        name,
        f"brings the trace to {format_quantity(size, 'B')} of memory, more than the {format_quantity(LARGEST_BYTES, 'B')} that are read; "
        "record fewer tokens, leave out scores, or choose smaller types",
    )


def _claim(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, where: Where) -> int:
    """Return the bytes that an array says it has, its header included; 0 if it is no array (the reader says what it is)."""
    with archive.open(entry) as stream:
        start = stream.read(12)
        if start[:6] != b"\x93NUMPY" or len(start) < 12:
            return 0
        if start[6] not in {1, 2}:
            raise where.error(name, f"is in version {start[6]} of NumPy's format, which only records need; save plain numbers of one shape")
        before = 10 if start[6] == 1 else 12
        length = before + int.from_bytes(start[8:before], "little")
        if length > LARGEST_HEADER:
            raise where.error(name, f"has a header of {length} bytes, too long to describe an array; save it with numpy.savez")
        header = io.BytesIO(start + stream.read(length - 12))
    header.seek(8)
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    return length + math.prod(shape) * dtype.itemsize
