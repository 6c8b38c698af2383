"""``moesim calibrate``."""

from __future__ import annotations

import sys

import click

from moesim.base.errors import UsageError

HELP = """Fit models to measurements, and write a profile that scenarios and 'moesim validate' can use.

DIR holds measured tables (as 'moesim validate' reads them; 'moesim measure' writes them), logs of nccl-tests and traces of
torch.profiler, also in folders. Every model that they determine is fitted; what they do not determine is refused by name. Errors are
printed on the fitted rows, on rows left out one by one or in parts, and on whole groups left out, such as a number of GPUs.

\b
  moesim calibrate measured/ -o profile.yaml
  moesim calibrate logs/ -o profile.yaml --gpu h100-sxm --name my-cluster
  moesim calibrate measured/ -o profiles/             one profile per GPU
"""


@click.command(name="calibrate", short_help="Fit models to measurements, and write a profile.", help=HELP)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("-o", "--out", required=True, metavar="FILE.yaml|FOLDER", help="Where the profile goes; of several GPUs, the folder.")
@click.option(
    "--gpu", default="", metavar="NAME", help="The GPU preset that was measured, where the files do not say it or say it wrongly."
)
@click.option("--name", default="", metavar="NAME", help="Of the profile; the GPU's name if not given.")
@click.option("--date", default="", metavar="YYYY-MM", help="When it was made; this month if not given.")
@click.option("--no-check", is_flag=True, help="Do not hold rows back to see how far the fits are off: many fits fewer.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print the fit.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(*, folder: str, out: str, gpu: str, name: str, date: str, no_check: bool, form: str, quiet: bool) -> None:
    """Read the measurements, fit, print how far off the fit is, write the profile."""
    import re
    from pathlib import Path

    from moesim.desk import calibration_files as files
    from moesim.desk.profile_files import write_profile
    from moesim.study.calibrate import calibrate

    target = Path(out)
    single = target.suffix in {".yaml", ".yml"}
    if not out.strip():
        raise UsageError("-o names no file")
    if name and not single:
        raise UsageError("--name is for one profile: let -o name a file that ends in .yaml")
    if date and re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", date) is None:
        raise UsageError(f"--date {date!r} is not a month such as 2026-11")
    _known(gpu)
    tables, unread = files.read_inputs(Path(folder), gpu=gpu)
    say = (lambda item: click.echo(f"fitting {item}", err=True)) if not quiet and sys.stderr.isatty() else None
    found = calibrate(tables, made=date or _month(), unreadable=unread, check=not no_check, progress=say)
    if form == "json":
        from moesim.desk.summary import to_json

        click.echo(to_json(files.report(found)), nl=False)
    else:
        click.echo(files.text(found), nl=False)
    sys.stdout.flush()
    profile = files.chosen(found, gpu=gpu if single else "", name=name) if single else None
    if profile is not None:
        write_profile(target, profile)
        written = [target]
    else:
        if not found.profiles:
            raise UsageError(f"{folder}: nothing could be fitted; the reasons stand above")
        written = files.write_profiles(target, found.profiles)
    for path in written:
        click.echo(f"Profile in {path}", err=True)


def _known(gpu: str) -> None:
    from moesim.base.errors import did_you_mean
    from moesim.facts.gpu_presets import gpu_presets

    if gpu and gpu not in gpu_presets():
        raise UsageError(f"--gpu: there is no preset {gpu!r}{did_you_mean(gpu, gpu_presets())}")


def _month() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m")
