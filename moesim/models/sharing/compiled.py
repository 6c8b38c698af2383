"""How the functions of the sharing cores are compiled, and kept on disk.

What has to be compiled is what most of a first run waits for. numba compiles a function once for every combination of types that it is
called with, and a plain number in a call is a type of its own (so is -1, as what a variable begins with). It counts references of arrays
wherever one is handed on, and it writes for each function two doors through which Python and C can call it. Functions that only others
here call need none of that; with all of it the exact core takes more than twice as long to compile, and runs slower.

numba takes compiled code from disk if the file of the function is as it was. What stands in it of functions in other files may be old then;
so here it is taken only if all files of the cores are as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

wide = cast("Callable[[int], int]", np.int64)
"""The type in which whole numbers are handed over; elements of narrower arrays and numbers that stand in the code have others."""

at = cast("Callable[[int], int]", np.uint64)
"""The type of a place in an array; of a whole number that has a sign, compiled code looks whether it counts from the end."""

TOGETHER = ("bottleneck_groups.py", "compiled.py", "quanta_*.py", "rank_chains.py")
"""Files whose functions become parts of each other's."""

_compile: Any = njit  # its published types leave out the options for functions inside others


@cache
def _files() -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of the files whose functions are compiled together."""
    paths = sorted(path for names in TOGETHER for path in Path(__file__).parent.glob(names))
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in ((path, path.stat()) for path in paths))


def _kept(function: Function, **options: Any) -> Function:
    """Compile a function; its code on disk is good for these files only."""
    compiled = _compile(cache=True, error_model="numpy", **options)(function)
    # numba offers no public way to say what else compiled code depends on.
    on_disk: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(on_disk, "_source_stamp"):
        on_disk._source_stamp = (on_disk._source_stamp, _files())  # noqa: SLF001
    return cast("Function", compiled)


def is_on_disk(compiled: object) -> bool:
    """Return whether the code of a function that Python calls lies on disk, and can be used on this machine."""
    kept: Any = getattr(compiled, "_cache", None)
    if kept is None:
        return True  # numba has been told not to compile
    context: Any = getattr(compiled, "targetctx")  # noqa: B009
    codegen = context.codegen()
    return any(key == kept._index_key(key[0], codegen) for key in kept._cache_file._load_index())  # noqa: SLF001


def from_python(function: Function) -> Function:
    """Compile a function that Python calls; it makes no arrays."""
    return _kept(function, _nrt=False, no_cfunc_wrapper=True)


def inside(function: Function) -> Function:
    """Compile a function that only compiled functions call; it makes no arrays."""
    return _kept(function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def lean(function: Function) -> Function:
    """Compile a function that makes no arrays, for whomever calls it."""
    return _kept(function, _nrt=False)


def making_arrays(function: Function) -> Function:
    """Compile a function that makes arrays, for whomever calls it."""
    return _kept(function, _nrt=True)


def merged(function: Function) -> Function:
    """Compile a function as a part of each compiled function that calls it, which is quicker for one that few call; it makes no arrays."""
    return cast("Function", _compile(error_model="numpy", _nrt=False, inline="always")(function))
