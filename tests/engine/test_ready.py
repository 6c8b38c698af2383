"""Getting ready before the scenario is known: what is loaded, and what is not."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    """Run code in a fresh process, since this one has loaded everything already; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_engine_gets_ready_without_loading_scipy() -> None:
    # numba asks for scipy.linalg on its first call, unless it is told that there is none; intervals ask for scipy.special.
    code = """
import sys
from moesim.engine.ready import get_ready
get_ready()
print(*{"numba", "scipy.linalg", "scipy.special"} & {*sys.modules})
"""
    assert python(code) == "numba"


def test_compiled_code_can_still_multiply_matrices() -> None:
    code = """
import sys
from moesim.models.lean_numba import BLAS, load_numba
load_numba()
assert BLAS not in sys.modules
import numba, numpy as np
product = numba.njit(lambda a, b: a @ b)(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
print(product.tolist(), BLAS in sys.modules)
"""
    assert python(code) == "[[2.0, 1.0], [4.0, 3.0]] True"
