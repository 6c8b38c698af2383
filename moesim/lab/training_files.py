"""Files of a recorded training: an NPZ trace that every command replays, and a JSON file that says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moesim
from moesim.base.errors import UsageError
from moesim.desk import folder as places
from moesim.desk.summary import digest, to_json
from moesim.desk.trace_files import npz
from moesim.desk.training_record import MARK, SCHEMA, read_recording
from moesim.lab.environment import describe
from moesim.lab.training import Plan, Recording, settings
from moesim.lab.training_text import Domain

STEM = "training"


def stem_of(plan: Plan) -> str:
    """Return the name of a recording's files without their ends.

    Examples
    --------
    >>> from moesim.lab.training_strategy import strategy
    >>> stem_of(Plan(strategy=strategy("aux=0.01+capacity=1.25"), seed=3))
    'training-aux-0.01-capacity-1.25-seed-3'
    """
    return f"{STEM}-{plan.strategy.slug}-seed-{plan.seed}"


def names_of(plans: Sequence[Plan]) -> frozenset[str]:
    """Return the files that trainings write."""
    return frozenset(f"{stem_of(plan)}.{end}" for plan in plans for end in ("npz", "json"))


def prepare(folder: Path, plans: Sequence[Plan]) -> None:
    """See to it, before anything is trained, that recordings can be written.

    Raises
    ------
    UsageError
        If the folder cannot be made or written, holds a file of that name that is no recording, or two trainings have one name.
    """
    stems = [stem_of(plan) for plan in plans]
    for stem in stems:
        if stems.count(stem) > 1:
            raise UsageError(f"{stem} would be written {stems.count(stem)} times: name each strategy and each seed once")
        for file in (folder / f"{stem}.json", folder / f"{stem}.npz"):
            if file.exists():
                try:
                    read_recording(folder / f"{stem}.json")
                except UsageError as error:
                    raise UsageError(f"{error}; {file} would be overwritten: choose another folder with -o") from None
    places.prepare(folder, frozenset())


def write(folder: Path, recording: Recording, domains: Sequence[Domain], *, licence: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Write the NPZ file and then the JSON file of a recording; return what stands in the latter.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    stem = stem_of(recording.plan)
    content = npz(trace_arrays(recording, domains))
    places.make(folder)
    places.put(folder / f"{stem}.npz", content)
    found = {
        "schema": SCHEMA,
        "what": MARK,
        "moesim": moesim.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "licence": licence,
        "partial": bool(recording.why),
        "why": recording.why,
        "finished": recording.finished,
        "seconds": round(recording.seconds, 1),
        "seconds_per_step": round(recording.seconds / recording.finished, 4),
        "settings": settings(recording.plan),
        "domains": [{"name": item.name, "bytes": len(item.content), "sha256": item.digest} for item in domains],
        "environment": dict(environment),
        "file": {"name": f"{stem}.npz", "sha256": digest(content)},
        "last": last(recording),
    }
    places.put(folder / f"{stem}.json", to_json(found).encode())
    return found


def environment() -> dict[str, Any]:
    """Return what trainings run on."""
    from moesim.lab.device import Device

    return describe(Device("cpu"))


def trace_arrays(recording: Recording, domains: Sequence[Domain]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the NPZ file: those of a trace of counts, and the rest beside them."""
    plan = recording.plan
    size = plan.size
    readme = (
        f"Recorded by moesim measure training: {plan.strategy.name}, seed {plan.seed}, {recording.finished} steps, counts of every "
        f"{plan.every}. step before drops, {plan.sources} sources of {plan.sequences * size.length // plan.sources} tokens, "
        f"domains {', '.join(item.name for item in domains)}"
    )
    head = {
        "axes": np.array(["step", "layer", "source", "expert"]),
        "top_k": np.array(size.top_k),
        "experts": np.array(size.experts),
        "ranks": np.array(plan.sources),
        "readme": np.array(readme),
    }
    return {"counts": recording.arrays["counts"], **head, **{name: item for name, item in recording.arrays.items() if name != "counts"}}


def last(recording: Recording) -> dict[str, float]:
    """Return what the routers were like at the end: means over layers and the last tenth of the steps (at least 10)."""
    arrays, plan = recording.arrays, recording.plan
    tail = slice(-min(max(recording.finished // 10, 10), recording.finished), None)
    routes = plan.sequences * plan.size.length * plan.size.top_k
    return {
        "maxvio": round(float(arrays["maxvio"][tail].mean()), 4),
        "idle_experts": round(float(arrays["idle_now"][tail].mean()), 3),
        "drop_rate": round(float(arrays["dropped"][tail].mean()) / routes, 5),
        "lm_loss": round(float(arrays["lm_loss"][tail].mean()), 4),
    }
