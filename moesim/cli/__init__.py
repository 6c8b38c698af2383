"""Floor 6: commands. Parse, call, print."""

from __future__ import annotations

import click

from moesim import __version__
from moesim.cli.group import Lazy, LazyGroup, debug_option

COMMANDS = {
    "init": Lazy("moesim.cli.init:command", "Write a scenario to start from."),
    "check": Lazy("moesim.cli.check:command", "Read a scenario and report every problem in it."),
    "run": Lazy("moesim.cli.run:command", "Simulate a scenario."),
    "compare": Lazy("moesim.cli.compare:command", "Play policies with the same tokens and say which is better."),
    "why": Lazy("moesim.cli.why:command", "Say why a step takes as long as it does, and what would help."),
    "memory": Lazy("moesim.cli.memory:command", "Say how much memory GPUs need, and how likely one runs out."),
    "sweep": Lazy("moesim.cli.sweep:command", "Simulate a scenario for many values of some keys."),
    "plan": Lazy("moesim.cli.plan:command", "Find the cheapest cluster or policy that meets targets."),
    "sensitivity": Lazy("moesim.cli.sensitivity:command", "Say which inputs move the answer, and which change nothing."),
    "network": Lazy("moesim.cli.network:command", "Play traffic on the cluster alone, and find the bottleneck."),
    "place": Lazy("moesim.cli.place:command", "Plan a placement of experts from their loads."),
    "report": Lazy("moesim.cli.report:command", "Draw the report of finished runs and studies."),
    "trace": Lazy("moesim.cli.trace:command", "Look into recorded routing, or write synthetic routing."),
    "measure": Lazy("moesim.cli.measure:command", "Measure kernels, exchanges and layers with PyTorch."),
    "calibrate": Lazy("moesim.cli.calibrate:command", "Fit models to measurements, and write a profile."),
    "validate": Lazy("moesim.cli.validate:command", "Hold predictions against measured tables."),
    "list": Lazy("moesim.cli.list:command", "Show what a scenario can be built from."),
    "schema": Lazy("moesim.cli.schema:command", "Print the JSON Schema of scenario files, for editors."),
}

HELP = """Predict what a load-balancing policy of a Mixture-of-Experts model costs and gains.

\b
Start with:
  moesim init scenario.yaml
  moesim run scenario.yaml

Results go to stdout, progress and problems to stderr. Exit codes: 0 fine, 1 the run failed, 2 bad input, 3 a target was missed.
"""


@click.group(cls=LazyGroup, lazy=COMMANDS, help=HELP, params=[debug_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moesim")
def main() -> None:
    """Do nothing by itself: the commands do."""
