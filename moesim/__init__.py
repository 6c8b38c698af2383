"""moesim: what a load-balancing policy of a Mixture-of-Experts model costs and gains, before it runs.

``import moesim`` loads nothing else: a name below is imported when it is first used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.desk.python.compare import compare
    from moesim.desk.python.plan import plan, sensitivity
    from moesim.desk.python.sweep import sweep
    from moesim.desk.python.why import memory, why
    from moesim.desk.result_files import load, save
    from moesim.desk.scenario_file import load_scenario
    from moesim.engine.simulate import simulate
    from moesim.facts.record import Result
    from moesim.facts.scenario import Scenario

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compare",
    "load",
    "load_scenario",
    "memory",
    "plan",
    "run",
    "save",
    "sensitivity",
    "simulate",
    "sweep",
    "why",
]

_PLACES = {
    "compare": "moesim.desk.python.compare",
    "load": "moesim.desk.result_files",
    "load_scenario": "moesim.desk.scenario_file",
    "memory": "moesim.desk.python.why",
    "plan": "moesim.desk.python.plan",
    "save": "moesim.desk.result_files",
    "sensitivity": "moesim.desk.python.plan",
    "simulate": "moesim.engine.simulate",
    "sweep": "moesim.desk.python.sweep",
    "why": "moesim.desk.python.why",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def run(scenario: str | os.PathLike[str] | Scenario, overrides: Iterable[str] = ()) -> Result:
    """Load a scenario file if it is one, simulate it, and return the result; nothing is printed or written.

    Parameters
    ----------
    scenario : path or Scenario
        A YAML file, or what :func:`moesim.load_scenario` returned.
    overrides : iterable of str
        ``policy.capacity.factor=1.1`` and so on, laid over the file in order.

    Returns
    -------
    Result
        Metrics, tables, warnings and assumptions; :func:`moesim.save` writes them as a folder.

    Raises
    ------
    ScenarioError
        With every problem of the file and the overrides.
    UsageError
        If overrides are given to a scenario that is already loaded.
    """
    from functools import cache

    from moesim.base.errors import UsageError
    from moesim.desk.scenario_file import load_scenario
    from moesim.desk.trace_files import read_trace
    from moesim.study.uncertainty import simulate_uncertain

    read = cache(read_trace)
    if isinstance(scenario, (str, os.PathLike)):
        scenario = load_scenario(scenario, overrides, read_trace=read)
    elif overrides := tuple(overrides):
        raise UsageError(f"the override {overrides[0]!r} comes too late for a scenario that is loaded; give it to load_scenario")
    return simulate_uncertain(scenario, read_trace=read)
