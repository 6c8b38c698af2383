"""Ways to play a cell without a simulation, for tests of the pool; in a module of their own, so that worker processes can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from moesim.study.cell import Answer, Cell, failure


def cells(count: int, text: str = "") -> list[Cell]:
    return [Cell(name=f"cell {at}", text=text, folder="/", axes={"at": at}, digest=f"{at:064x}") for at in range(count)]


def answer(cell: Cell) -> Answer:
    at = cell.axes["at"]
    return Answer(name=cell.name, digest=cell.digest, axes=cell.axes, samples={"square": np.array([float(at) ** 2])})


def square(cell: Cell) -> Answer:
    return answer(cell)


def square_or_raise(cell: Cell) -> Answer:
    if cell.axes["at"] == 1:
        raise RuntimeError("cell 1 is odd")
    return answer(cell)


def square_or_die(cell: Cell) -> Answer:
    """The process that plays cell 2 is killed, every time."""
    if cell.axes["at"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(cell)


def square_or_die_once(cell: Cell) -> Answer:
    """The first process that plays cell 2 is killed; ``text`` is a folder in which a file remembers that."""
    mark = Path(cell.text) / "died"
    if cell.axes["at"] == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(cell)


def die(cell: Cell) -> Answer:
    os.kill(os.getpid(), signal.SIGKILL)
    return answer(cell)


def square_slowly(cell: Cell) -> Answer:
    time.sleep(0.05)
    return answer(cell)


def square_or_take_much(cell: Cell) -> Answer:
    """Cell 1 wants 8 GiB and says so if it does not get them, as a simulation does."""
    if cell.axes["at"] == 1:
        try:
            np.ones(2**30)
        except MemoryError as error:
            return failure(cell, f"not enough memory: {error}")
    return answer(cell)


def threads_of_libraries(cell: Cell) -> Answer:
    numbers = [int(os.environ["OMP_NUM_THREADS"]), int(os.environ["OPENBLAS_NUM_THREADS"])]
    return Answer(name=cell.name, digest=cell.digest, axes=cell.axes, samples={"threads": np.array(numbers, dtype=np.float64)})
