"""Answers of runs made by hand, for the statistics of studies."""

import numpy as np

from moesim.facts.record import Value
from moesim.measure.collect import metrics
from moesim.study.cell import Answer
from moesim.study.played import Played


def answer(samples, *, name="run", tables=None):
    """A finished run whose metrics follow from the samples as those of a real run do."""
    known = metrics()
    arrays = {key: np.asarray(values, dtype=float) for key, values in samples.items()}
    steps = len(next(iter(arrays.values())))
    found = {}
    for key, values in arrays.items():
        kind = getattr(known[key], "summary", "mean")
        rest = values[~np.isnan(values)]
        value = None if not rest.size else float(rest.max() if kind == "max" else rest.mean() if kind == "mean" else rest[0])
        found[key] = Value(value=value, unit=known[key].unit, low=None, high=None, n=len(rest), basis="measured")
    return Answer(
        name=name,
        digest=name,
        axes={},
        metrics=found,
        samples=arrays,
        steps=np.arange(steps),
        fresh=np.ones(steps, dtype=bool),
        tables=tables,
    )


def seeds(name, *, step_time, **more):
    """A variant with a run of one step for each value of the step time."""
    runs = [answer({"step_time": [time], **{key: [values[at]] for key, values in more.items()}}) for at, time in enumerate(step_time)]
    return Played(name=name, answers=tuple(runs), seeds=tuple(range(len(runs))), blocks=np.arange(1))


def single(name, *, blocks=None, **samples):
    """A variant with one run of many steps."""
    run = answer(samples)
    return Played(name=name, answers=(run,), seeds=(1,), serial=True, blocks=run.steps if blocks is None else np.asarray(blocks))
