"""Draw the figures in two processes at once: no figure needs another, and together they take as long as a short simulation."""

from __future__ import annotations

import multiprocessing
from itertools import chain, zip_longest
from multiprocessing.connection import Connection

from moesim.desk.report.figures import FIGURES, draw_some
from moesim.desk.report.style import Drawing
from moesim.facts.record import Result

HERE, THERE = FIGURES[::2], FIGURES[1::2]


def draw_in_two(result: Result) -> dict[str, Drawing]:
    """Return what :func:`moesim.desk.report.figures.draw` returns; a forked process draws every second figure.

    A figure that fails there is drawn again here, so that it fails here if it must fail. Only where processes can be forked.
    """
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe(duplex=False)
    other = context.Process(target=_send, args=(theirs, result))
    other.start()
    theirs.close()
    ours = draw_some(result, HERE)
    try:
        others = pipe.recv()
    except EOFError:
        others = draw_some(result, THERE)
    other.join()
    return {drawing.name: drawing for drawing in chain(*zip_longest(ours, others)) if drawing is not None}


def _send(pipe: Connection, result: Result) -> None:
    pipe.send(draw_some(result, THERE))
