"""``moesim check``."""

from __future__ import annotations

import dataclasses
import json

import click

from moesim.base.errors import MoesimError, Problem, ScenarioError
from moesim.facts.scenario import Scenario


@click.command(name="check", short_help="Read a scenario and report every problem in it.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print the answer.")
@click.pass_context
def command(context: click.Context, file: str, overrides: tuple[str, ...], form: str) -> None:
    """Read a scenario FILE and report every problem in it, each with line and column.

    KEY=VALUE lays a value over the file, for example policy.capacity.factor=1.1. Exits with 2 if there are problems.
    """
    from moesim.desk.scenario_file import load_scenario

    try:
        scenario = load_scenario(file, overrides)
        cells = _check_cells(file, overrides) if scenario.matrix else 0
    except MoesimError as error:
        if form == "text":
            raise
        problems = error.problems if isinstance(error, ScenarioError) else (Problem(file=file, message=str(error)),)
        found = [dataclasses.asdict(problem) for problem in problems]
        click.echo(json.dumps({"schema": 1, "ok": False, "problems": found}, indent=2))
        context.exit(error.exit_code)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "ok": True, "name": scenario.name, "problems": []}, indent=2))
    else:
        click.echo(f"ok: {described(scenario)}{f', a matrix of {cells} cells' if cells else ''}")


def _check_cells(file: str, overrides: tuple[str, ...]) -> int:
    """Read every cell of a matrix; return their number, or raise with the problems of all of them."""
    from moesim.desk.sweep_cells import plan_sweep

    plan = plan_sweep(file, overrides)
    problems: list[Problem] = []
    for index in range(len(plan)):
        try:
            plan.scenario(index)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    return len(plan)


def described(scenario: Scenario) -> str:
    """Return what a scenario is about in one line."""
    model = scenario.model
    steps = f"{scenario.steps} step{'' if scenario.steps == 1 else 's'}"
    parts = [
        scenario.name,
        f"{model.name} ({len(model.moe_layers)} MoE layers of {model.experts} experts, top {model.top_k})",
        f"{type(scenario.cluster).kind}, ep {scenario.parallel.ep}",
        f"{scenario.workload.phase} with {scenario.workload.tokens_per_gpu} tokens per GPU",
        f"{type(scenario.routing).kind} routing",
        f"{steps} ({scenario.warmup} of them warm-up)" if scenario.warmup else steps,
    ]
    if scenario.compare:
        parts.append(f"{len(scenario.compare)} variant{'' if len(scenario.compare) == 1 else 's'}: {', '.join(scenario.compare)}")
    return ", ".join(parts)
