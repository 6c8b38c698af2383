"""Load numba without SciPy, which it loads on its first call although nothing here asks for linear algebra."""

from __future__ import annotations

import sys

BLAS = "scipy.linalg.cython_blas"
"""What numba imports, once, to find out whether SciPy is there: that takes longer than loading all of numba."""


def load_numba() -> None:
    """Import numba, and the part of it that looks for SciPy, while SciPy cannot be found.

    Compiled code that multiplies matrices still works: numba imports SciPy when it comes upon some. All that is lost is that inner products
    inside ``np.convolve`` and ``np.correlate`` of compiled code are numba's own loop instead of BLAS's.
    """
    if "numba.np.arraymath" in sys.modules or BLAS in sys.modules:
        return
    import numba  # noqa: F401

    sys.modules[BLAS] = None  # type: ignore[assignment]  # Python's own way to say that a module cannot be imported
    try:
        from numba.np import arraymath  # noqa: F401
    except ImportError:
        return  # another version of numba keeps it elsewhere: it is loaded as it wishes
    finally:
        del sys.modules[BLAS]
