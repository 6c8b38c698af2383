"""``moesim measure testbed``: predict, then measure, on links that Linux shapes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

HELP = """Measure all-to-alls and MoE layers between ranks on shaped links, after predicting every case.

Ranks are processes in network namespaces of this machine, joined by virtual links of 50 to 200 Mbit/s that really fill up: in a star,
and in nodes with a slow shared uplink. The predictions are written first, with a hash of their own content; then real PyTorch ranks move
real bytes; then both stand side by side. Needs Linux, root, iproute2 and the extra "measure". Everything that is made is removed again,
and so is what a killed run has left behind.

\b
  moesim measure testbed --quick        about a minute, 14 cases
  moesim measure testbed -o FOLDER      about 25 minutes on two quiet cores, 168 cases

Exit codes: 0 fine, 1 a rank died (what was measured is kept and marked partial), 2 there can be no testbed here, 3 an error exceeds
--most-exchange or --most-layer.
"""


@click.command(name="testbed", short_help="Predict, then measure, on links that Linux shapes.", help=HELP)
@click.option("--quick", is_flag=True, help="About a minute.")
@click.option("--repeats", type=click.IntRange(1, 1000), metavar="N", help="Of every case; 5 with --quick, otherwise 7.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of tokens, weights and the order of cases.")
@click.option("--predict-only", is_flag=True, help="Write the predictions and measure nothing but what they rest on.")
@click.option("--clean", is_flag=True, help="Only remove what killed runs have left behind.")
@click.option("--most-exchange", type=click.FloatRange(min=0), metavar="PCT", help="Fail if an all-to-all of 50 ms or more is off by more.")
@click.option("--most-layer", type=click.FloatRange(min=0), metavar="PCT", help="Fail if a step of a layer is off by more.")
@click.option("-o", "--out", metavar="FOLDER", default="results/testbed", show_default=True, help="Where the files go.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print the answer.")
def testbed(**options: Any) -> None:
    """Prepare, predict, measure, compare."""
    folder = Path(options["out"])
    if options["clean"]:
        _clean()
        return
    from moesim.lab.testbed import need_testbed

    need_testbed()
    from moesim.desk import folder as places
    from moesim.desk.summary import to_json
    from moesim.desk.testbed_files import NAMES, tables
    from moesim.lab.namespaces import in_use

    if in_use():
        click.echo("Warning: another testbed runs on this machine: each will find the other in its times", err=True)

    if not (folder / "predictions.json").is_file():
        places.prepare(folder, frozenset(NAMES))
    for name in NAMES:
        places.drop(folder / name)
    document = _predict(folder, options)
    if options["predict_only"]:
        click.echo(f"{len(document['cases'])} predictions in {folder / 'predictions.json'}, hash {document['sha256']}", err=True)
        return
    from moesim.lab.signals import ignoring_interrupts
    from moesim.lab.testbed import measure
    from moesim.study.testbed.outcome import compared

    measured = measure(document, seed=options["seed"], progress=_say)
    with ignoring_interrupts():
        found = compared(document, measured)
        files = {"measured.json": to_json(measured), "comparison.json": to_json(found), **tables(document, found, measured)}
        for name, text in files.items():
            places.put(folder / name, text.encode())
    click.echo(to_json(found) if options["form"] == "json" else _table(found), nl=False)
    sys.stdout.flush()
    click.echo(f"Results in {folder}", err=True)
    if measured["partial"]:
        click.echo(f"partial: {measured['partial']}", err=True)
        raise click.exceptions.Exit(130 if measured["interrupted"] else 1)
    missed = _missed(found, options)
    if missed:
        click.echo("\n".join(missed), err=True)
        raise click.exceptions.Exit(3)


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def _clean() -> None:
    """Remove what killed runs have left behind; before anything makes a testbed, for that removes it as well."""
    from moesim.base.errors import UsageError
    from moesim.lab.namespaces import remove_left_behind, why_not_even_remove

    reason = why_not_even_remove()
    if reason:
        raise UsageError(f"there can be no testbed here, and so none to remove: {reason}")
    gone = remove_left_behind()
    many = "1 testbed" if len(gone) == 1 else f"{len(gone)} testbeds"
    click.echo(f"removed {many}" if gone else "nothing was left behind", err=True)


def _predict(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what predictions rest on, predict every case, and write the file before anything else is measured."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from moesim import __version__
    from moesim.desk import folder as places
    from moesim.desk.sealed import sealed
    from moesim.desk.summary import to_json
    from moesim.lab.testbed import prepare
    from moesim.study.testbed.plan import LIBRARY_TIMES, POSTING_PROBE, PROBE, REFERENCE_ROWS, full_plan, predictions, quick_plan

    plan = quick_plan() if options["quick"] else full_plan()
    repeats = options["repeats"] or plan.repeats
    known = prepare(
        [asdict(fabric) for fabric in plan.fabrics],
        [asdict(case) for case in plan.layers],
        exchanging=tuple(dict.fromkeys(case.fabric for case in plan.exchanges)),
        changing=tuple(dict.fromkeys(case.fabric for case in plan.exchanges if case.degraded)),
        probe={**PROBE, "pair_bytes": POSTING_PROBE},
        seed=options["seed"], repeats=repeats, quick=options["quick"], reference=REFERENCE_ROWS, progress=_say,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    document = sealed(
        {
            "schema": 3,
            "what": "moesim testbed prediction",
            "moesim": __version__,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": options["seed"],
            "repeats": repeats,
            "cores": cores,
            "fabrics": [asdict(fabric) for fabric in plan.fabrics],
            "cases": predictions(plan, known, cores),
            "calibration": known["calibration"],
            "probes": known["probes"],
            "crowded": known["crowded"],
            "posting": known["posting"],
            "changing": known["changing"],
            "reference_rows": REFERENCE_ROWS,
            "library_times": LIBRARY_TIMES,
            "environment": known["environment"],
        }
    )
    places.put(folder / "predictions.json", to_json(document).encode())
    _say(f"{len(document['cases'])} cases predicted, hash {document['sha256'][:16]}")
    return document


def _table(found: Mapping[str, Any]) -> str:
    width = max([len(case["name"]) for case in found["cases"]] + [4])
    lines = [f"{'case':{width}}  predicted  measured    error  repeats"]
    for case in found["cases"]:
        both = f"{case['predicted_s'] * 1e3:6.1f} ms  {case['median_s'] * 1e3:6.1f} ms"
        speed = f"  {case['at_speed']['error_pct']:+5.1f} % for cores at {case['at_speed']['slowdown']:.2f}" if "at_speed" in case else ""
        if "orders" in case:
            told = case["orders"]
            span = f"{told['low_s'] * 1e3:.0f} to {told['high_s'] * 1e3:.0f} ms"
            speed = f"  {told['inside']:.0%} within {span}, mean {told['mean_error_pct']:+.1f} %"
        lines.append(f"{case['name']:{width}}  {both}  {case['error_pct']:+5.1f} %  {case['repeats']}{speed}")
    lines.append("")
    for sort, errors in found["sorts"].items():
        others = "; ".join(f"{name} {item['mean_abs_pct']:.1f} %" for name, item in errors["baselines"].items())
        lines.append(f"{sort}: {errors['n']} cases, mean {errors['mean_abs_pct']:.1f} %, worst {errors['worst_pct']:.1f} %  ({others})")
        if "at_speed" in errors:
            known = errors["at_speed"]
            lines.append(f"  for the speed of the cores at the time: mean {known['mean_abs_pct']:.1f} %, worst {known['worst_pct']:.1f} %")
    order = found["order"]
    if order["pairs"]:
        lines.append(f"order of layer cases: {order['wrong']} of {order['pairs']} pairs the other way round")
    lines += [f"not measured: {name}" for name in found["unmeasured"]] + list(found["notes"])
    return "\n".join(lines) + "\n"


def _missed(found: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    missed = []
    for case in found["cases"]:
        layer = case["sort"].startswith("layer")
        most = options["most_layer"] if layer else options["most_exchange"]
        counted = layer or ("below" not in case["sort"] and "own" not in case["sort"])
        error = case.get("at_speed", case)["error_pct"]
        if most is not None and counted and abs(error) > most:
            missed.append(f"{case['name']}: off by {error:+.1f} %, more than {most:g} %")
    return missed
