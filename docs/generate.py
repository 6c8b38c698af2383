"""Write the pages of the reference that follow from the code.

    python docs/generate.py            write them
    python docs/generate.py --check    only say which of them are out of date, and exit with 1 if any is

Run it after changing a scenario section, a plug-in, a metric, a command or a preset. ``docs/reference/results.md`` and
``docs/reference/python.md`` are written by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from moesim.base.fields import Preset
from moesim.base.registry import SLOTS, PluginOf, Slot, kinds
from moesim.base.units import DIMENSIONS, format_quantity
from moesim.desk.catalogue import POLICY, SECTIONS, takes
from moesim.desk.docstrings import field_notes, summary
from moesim.desk.plain_data import plain_data
from moesim.desk.shape import alternatives, bare, field_types, marker_of
from moesim.facts import contracts
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_figures import FIGURES
from moesim.facts.model import Attention, MoeModel
from moesim.facts.ranks import Ranks, RankStep
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Sharing, Workload
from moesim.facts.training import Training
from moesim.models.placement.file import WrittenSlots
from moesim.models.topology.wiring import Vertex, WiredLink, Wiring

LINKED = frozenset(
    {
        "attention",
        "gpu",
        "wiring",
        "vertex",
        "wiredlink",
        "parallel",
        "workload",
        "sharing",
        "policy",
        "rebalance",
        "writtenslots",
        "ranks",
        "rankstep",
        "training",
    }
)
"""Sections that have a heading of their own on the page of scenarios."""

FOLDER = Path(__file__).parent / "reference"
MARK = "<!-- Written by docs/generate.py from the code. Do not edit: change the code and run it again. -->\n\n"
PROTOCOLS = {
    "topology": contracts.Topology,
    "source": contracts.Draw,
    "gate": contracts.Choose,
    "capacity": contracts.Limit,
    "placement": contracts.Plan,
    "dispatch": contracts.Bind,
    "exchange": contracts.Carry,
    "compute": contracts.Kernels,
    "schedule": contracts.Schedule,
    "metric": contracts.Metric,
}

# What the pages say besides what the code says

SCENARIO = """
A scenario is one YAML file. `moesim check` finds every mistake in it, with line and column; `moesim schema` prints a JSON Schema for
editors. YAML is read by the core rules of YAML 1.2: `1e-6` is a number and `no` is a word. No key may stand twice. Paths are relative to
the file that names them.
"""
QUANTITIES = """
A quantity is a number with a unit; only 0 may stand alone. `b` is a bit and `B` a byte. `k M G T P` are powers of 1000, `Ki Mi Gi Ti`
powers of 1024. Inside moesim everything is in SI units: seconds, bytes, bytes per second, flop per second.
"""
MODEL = """
Three forms. `model: {preset: NAME}` takes a [shipped model](presets.md#models). `model: {config: path/to/config.json}` reads a Hugging
Face `config.json`. Or all of the keys below stand in the file. Keys written beside a preset or a config win over it.
"""
CLUSTER = """
`kind` chooses a [topology](plugins.md#topologies); the other keys are the topology's. What stands under `gpu` is a
[preset's](presets.md#gpus) name, or a mapping with these keys:
"""
CHOICES = """
`kind` chooses a plug-in: a [source](plugins.md#sources), an [exchange](plugins.md#exchanges), a [compute model](plugins.md#computes), a
[schedule](plugins.md#schedules). The other keys are the plug-in's.
"""
COMPARE = """
A mapping from a name to a partial policy: what a variant does not say is taken from `policy`. A section of another kind replaces the one
of the file; of the same kind, or with no kind named, it changes only the keys that it has. `null` under `capacity` is dropless.
**This version checks the variants but does not run them:** `moesim run` simulates `policy` alone. Run each variant with an
override such as `policy.capacity.factor=1.0` and a folder of its own (`-o`).
"""
OVERRIDING = """
`moesim run FILE KEY=VALUE ...` lays values over the file. A key is a path with dots, a value is YAML: `policy.capacity.factor=1.1`,
`policy.capacity=null`, `cluster.nic='200 Gb/s'`, `'policy.placement={kind: round_robin}'`.
"""
PLUGINS = """
Every choice that a scenario makes by `kind` (or, for capacities, by `rule`) is a plug-in: a frozen dataclass whose fields are its keys.
`moesim list` prints the same in the terminal, with your own plug-ins if they are installed. How to write one:
[Write a plug-in](../howto/write-a-plugin.md).
"""
METRIC_SLOT = "All metrics are measured in every run; their definitions are [a page of their own](metrics.md)."
METRICS = """
Every metric is a function of the tables of a run: one sample per measured step, then one value. A mean over at least two steps has an
interval that bounds it with 95 % (Student's t, steps taken as independent). The *basis* of a value is the weakest evidence behind what it
rests on: `exact`, `measured`, `fitted`, `datasheet` or `assumed`. A value that the run cannot tell is `null`, never 0.
"""
COMMAND_LINE = """
The result goes to stdout; progress, warnings and problems go to stderr. Exit codes: 0 all is well, 1 the run failed, 2 the input is wrong,
130 interrupted. (3 is kept for a target that was missed; no command uses it yet.) A traceback appears only with `--debug`.
"""
GPUS = """
`value` is what the preset uses (`peak`) or what a measurement reached (`achievable`). Links are one way, arithmetic is dense.
An achievable figure says with what it was measured; only `all-to-all` figures decide how fast simulated links are.
"""
LINKS = """
A bandwidth from a data sheet is multiplied by the share below: the `all-to-all` figure of the GPU over its data sheet, to two digits. A
GPU of which no all-to-all was measured (H100 by NVLink, H800 by its card) takes the line "any other". A bandwidth that you write is taken
as it stands, unless you write an efficiency beside it.
"""
LATENCIES = "Latencies, from GPU to GPU; `switch` is added by every further switch."
PROFILE = "What the kernels of `grouped_gemm` achieve. A GPU without a profile of its name takes the last."
ROUTERS = "Parameters of the source `router`, in units of the standard deviation of a token's noise."

# Text


def markdown(text: str) -> str:
    """Turn a paragraph of a docstring into Markdown."""
    pieces = re.split(r"``(.+?)``|:\w+:`~?([^`]+?)`", " ".join(text.split()))
    done = []
    for number, piece in enumerate(pieces):
        if piece is None:
            continue
        if number % 3 == 0:
            strong = re.sub(r"(?<![\w*])\*(\w[^*]*?)\*(?![\w*])", "\0\\1\0", piece)
            done.append(re.sub(r"([*<\[\]$])", r"\\\1", strong).replace("\0", "*"))
        else:
            done.append(f"`{piece.rsplit('.', 1)[-1] if number % 3 == 2 else piece}`")
    return "".join(done)


def sections(thing: Any) -> dict[str, str]:
    """Return the parts of a numpydoc docstring by heading; ``""`` is what comes before the first."""
    parts: dict[str, list[str]] = {"": []}
    heading = ""
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"-{3,}", line):
            continue
        if number + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[number + 1]):
            heading = line
            parts[heading] = []
        else:
            parts[heading].append(line)
    return {name: "\n".join(part).strip() for name, part in parts.items()}


def prose(thing: Any) -> str:
    """Return the docstring as Markdown: what it is, then its notes; keys stand in a table of their own."""
    parts = sections(thing)
    paragraphs = [*parts[""].split("\n\n"), *(parts["Notes"].split("\n\n") if "Notes" in parts else [])]
    told = (paragraph for paragraph in paragraphs if paragraph.strip() and not paragraph.startswith("The other fields are those of"))
    return "\n\n".join(markdown(paragraph) for paragraph in told)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)])


def page(title: str, *parts: str) -> str:
    return MARK + "\n\n".join([f"# {title}", *(part.strip("\n") for part in parts if part)]) + "\n"


# Keys


def accepts(annotation: Any) -> str:
    """Return what a key takes, in a few words."""
    words = []
    for choice in alternatives(annotation):
        marker = marker_of(choice)
        if isinstance(marker, PluginOf):
            slot = SLOTS[marker.slot]
            words.append(f"{'an' if slot.name[0] in 'aeiou' else 'a'} [{slot.name}](plugins.md#{slot.plural})")
        elif isinstance(marker, Preset):
            words.append(f"a [preset](presets.md) or a [mapping](scenario.md#{marker.cls.__name__.lower()})")
        elif dataclasses.is_dataclass(bare(choice)):
            # Sections of plug-ins have no heading on the page of scenarios: only those that the page has are linked.
            name = bare(choice).__name__.lower()
            words.append(f"a [mapping](scenario.md#{name})" if name in LINKED else "a mapping")
        else:
            words.append(takes(choice))
    return " or ".join(words)


def default_of(item: dataclasses.Field[Any], annotation: Any) -> str:
    if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
        return "required"
    value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
    if type(value) is Policy:
        return "every default"
    written = plain_data(value, annotation, str)
    if isinstance(written, dict) and set(written) <= {"kind", "rule"} and written:
        written = next(iter(written.values()))
    elif isinstance(written, dict) and written:
        written = written.get("kind", written.get("rule", written))
    return f"`{written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)}`"


def keys(cls: type, *, override: Mapping[str, str] | None = None) -> str:
    """Return the table of a mapping's keys; empty if it has none."""
    notes, said = field_notes(cls), override or {}
    rows = []
    for item in dataclasses.fields(cls):
        if item.init:
            annotation = field_types(cls)[item.name]
            what = said.get(item.name) or accepts(annotation)
            rows.append((f"`{item.name}`", what, default_of(item, annotation), markdown(notes.get(item.name, ""))))
    return table(("key", "takes", "default", "meaning"), rows) if rows else ""


# Pages


OVERRIDES = {
    "model": "a [mapping](#model)",
    "compare": "a mapping to partial [policies](#policy)",
    "plugins": "a list of paths",
}
"""What the loader itself reads, before the field's own type does."""


def scenario_page() -> str:
    units = table(
        ("quantity", "units", "example"),
        ((what.name, ", ".join(f"`{unit}`" for unit in what.units if len(unit) <= 8), f"`{what.example}`") for what in DIMENSIONS.values()),
    )
    return page(
        "The scenario file",
        SCENARIO,
        "## The file",
        prose(Scenario),
        keys(Scenario, override=OVERRIDES),
        "## Quantities",
        QUANTITIES,
        units,
        "## model",
        MODEL,
        keys(MoeModel),
        "### attention",
        prose(Attention),
        keys(Attention),
        "## cluster",
        CLUSTER,
        "### gpu",
        prose(Gpu),
        keys(Gpu),
        "### wiring",
        prose(Wiring),
        keys(Wiring),
        "### vertex",
        prose(Vertex),
        keys(Vertex),
        "### wiredlink",
        prose(WiredLink),
        keys(WiredLink),
        "## parallel",
        prose(Parallel),
        keys(Parallel),
        "## workload",
        prose(Workload),
        keys(Workload),
        "### ranks",
        prose(Ranks),
        keys(Ranks),
        "### rankstep",
        prose(RankStep),
        keys(RankStep),
        "## training",
        prose(Training),
        keys(Training),
        "## routing, exchange, compute, schedule",
        CHOICES,
        "## sharing",
        prose(Sharing),
        keys(Sharing),
        "## policy",
        prose(Policy),
        keys(Policy),
        "### rebalance",
        prose(Rebalance),
        keys(Rebalance),
        "### writtenslots",
        prose(WrittenSlots),
        keys(WrittenSlots),
        "## compare",
        COMPARE,
        "## Overrides",
        OVERRIDING,
    )


def slot_part(slot: Slot) -> str:
    protocol = PROTOCOLS[slot.name]
    section = SECTIONS.get(slot.name, f"policy.{slot.name}" if slot.name in POLICY else slot.name)
    written = "" if slot.name == "metric" else f"Written as `{section}: {{{slot.tag}: NAME, ...}}`."
    if slot.null:
        written += f" `null` stands for `{slot.null}`."
    methods = []
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")):
            call = name if name != "__call__" else protocol.__name__
            signature = str(inspect.signature(function)).replace("self, ", "").replace("(self)", "()").replace("'", "")
            methods.append(f"- `{call}{signature}`: {markdown(inspect.getdoc(function) or '')}")
    contract = f"**Contract** (`{protocol.__name__}`). {prose(protocol)}\n\n" + "\n".join(methods)
    contract += f"\n\nChecked by `moesim.testing.check_{slot.name}`."
    if slot.name == "metric":
        return f"## {slot.plural}\n\n{METRIC_SLOT}\n\n{contract}"
    parts = [f"## {slot.plural}", written, contract]
    for kind, cls in kinds(slot.name).items():
        if cls.__module__.startswith("moesim."):
            parts += [f"### {kind}", prose(cls), keys(cls)]
    return "\n\n".join(part for part in parts if part)


def plugins_page() -> str:
    return page(
        "Plug-ins",
        PLUGINS,
        *(slot_part(slot) for slot in SLOTS.values()),
    )


def metrics_page() -> str:
    from moesim.measure.collect import metrics

    how = {"mean": "mean over measured steps", "max": "largest of all measured steps", "whole": "one number of the whole run"}
    rows = []
    for name, metric in metrics().items():
        if type(metric).__module__.startswith("moesim."):
            summarised = how[getattr(metric, "summary", "mean")]
            rows.append(
                (f"`{name}`", markdown(summary(type(metric))), metric.unit or "1", metric.better, ", ".join(metric.rests_on), summarised)
            )
    return page(
        "Metrics",
        METRICS,
        table(("metric", "definition", "unit", "better", "rests on", "value"), rows),
    )


def type_of(parameter: click.Parameter) -> str:
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return " | ".join(str(choice) for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        return f"{parameter.metavar or 'integer'}, at least {kind.min}"
    return parameter.metavar or {"text": "text", "integer": "integer", "float": "number", "path": "path"}.get(kind.name, kind.name)


def command_part(words: str, command: click.Command) -> list[str]:
    if isinstance(command, click.Group):
        return [part for name in sorted(command.commands) for part in command_part(f"{words} {name}", command.commands[name])]
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    usage = " ".join(argument.metavar or (argument.name or "").upper() + ("..." if argument.nargs == -1 else "") for argument in arguments)
    rows = []
    for option in options:
        flag = ", ".join(f"`{word}`" for word in option.opts)
        default = "" if option.is_flag or not option.show_default else f"`{option.default}`"
        rows.append(
            (flag, "" if option.is_flag else type_of(option), default, ("required. " * option.required + (option.help or "")).strip())
        )
    paragraphs = inspect.cleandoc((command.help or "").replace("\\b", "").replace("\b", "")).split("\n\n")
    body = [
        f"```text\n{part.strip(chr(10))}\n```" if part.lstrip("\n").startswith("  ") else markdown(part)
        for part in paragraphs
        if part.strip()
    ]
    return [
        f"## {words}",
        f"```text\n{words} [OPTIONS] {usage}".rstrip() + "\n```",
        *body,
        table(("option", "takes", "default", "meaning"), rows),
    ]


def commands_page() -> str:
    from moesim.cli import COMMANDS, main

    context = click.Context(main)
    parts = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        if command is None:
            raise SystemExit(f"there is no command {name!r}")
        parts += command_part(f"moesim {name}", command)
    return page(
        "Commands",
        COMMAND_LINE,
        *parts,
    )


def number(value: float, unit: str) -> str:
    return format_quantity(value, unit) if unit in DIMENSIONS else f"{value:g}"


def known_rows(known: Mapping[str, Any], unit: str = "1") -> list[tuple[str, str, str, str]]:
    return [(name, number(item.value, unit), item.basis, markdown(item.source)) for name, item in known.items()]


def presets_page() -> str:
    from moesim.models.compute.profiles import ASSUMED, PROFILES
    from moesim.models.source.router import PRESETS
    from moesim.models.topology.achieved import DELAYS, ELSEWHERE, SHARES

    parts = [
        "## GPUs",
        GPUS,
    ]
    for name, figures in sorted(FIGURES.items()):
        rows = [
            (
                figure.quantity,
                number(figure.value, figure.unit),
                ", ".join(word for word in (figure.kind, figure.experiment, figure.direction, figure.density) if word),
                figure.basis,
                f"{markdown(figure.source)} (read {figure.date})",
            )
            for figure in figures
        ]
        parts += [f"### {name}", table(("quantity", "value", "what", "basis", "source"), rows)]
    parts += [
        "## What links achieve",
        LINKS,
    ]
    shares = [
        (link, gpu, f"{share.value:g}", share.basis, markdown(share.source))
        for link, known in SHARES.items()
        for gpu, share in {**known, "any other": ELSEWHERE[link]}.items()
    ]
    parts.append(table(("class of link", "GPU", "share", "basis", "source"), shares))
    parts += [
        LATENCIES,
        table(("latency of", "value", "basis", "source"), known_rows(DELAYS, "s")),
    ]
    parts += ["## Compute profiles", PROFILE]
    for name, profile in {**PROFILES, "no profile": ASSUMED}.items():
        rows = known_rows({f"compute efficiency, {dtype}": known for dtype, known in profile.compute_efficiency.items()})
        rows += known_rows({"memory efficiency": profile.memory_efficiency, "dense efficiency": profile.dense_efficiency})
        rows += known_rows({"launch of a grouped GEMM": profile.launch, "launch of a dense phase": profile.dense_launch}, "s")
        parts += [f"### profile {name}" if name != "no profile" else "### no profile", table(("number", "value", "basis", "source"), rows)]
    routers = [
        (
            f"`{name}`",
            law.offsets,
            f"{law.scale:g}",
            f"{law.jitter:g}",
            "{} experts, top {}".format(*law.fitted_at) if law.fitted_at else "",
        )
        for name, law in PRESETS.items()
    ]
    parts += [
        "## Routers",
        ROUTERS,
        table(("preset", "offsets", "scale", "jitter", "fitted at"), routers),
    ]
    return page("Presets and their sources", "Every number that ships with moesim, with where it comes from.", models_part(), *parts)


def models_part() -> str:
    from moesim.desk.presets.models import model_preset, model_presets

    rows, notes = [], []
    for name in model_presets():
        model = model_preset(name)
        source = json.loads(files("moesim.desk.presets.models").joinpath(f"{name}.json").read_text(encoding="utf-8")).get("_source", "")
        rows.append(
            (
                f"`{name}`",
                f"{len(model.moe_layers)} of {model.layers}",
                f"{model.experts}, top {model.top_k}",
                str(model.hidden),
                str(model.expert_width),
                str(model.shared_width or "none"),
                model.expert_dtype,
                f"{model.total_parameters / 1e9:,.4g} B ({model.active_parameters / 1e9:,.4g} B)",
                markdown(source),
            )
        )
        notes += [f"- `{name}`: {markdown(note)}" for note in model.notes]
    heads = ("model", "MoE layers", "experts", "hidden", "expert width", "shared width", "expert dtype", "parameters (active)", "source")
    left_out = "\n\nWhat the facts leave out of a model, said in every result:\n\n" + "\n".join(notes) if notes else ""
    return "## Models\n\n" + table(heads, rows) + left_out


PAGES: dict[str, Callable[[], str]] = {
    "scenario.md": scenario_page,
    "plugins.md": plugins_page,
    "metrics.md": metrics_page,
    "commands.md": commands_page,
    "presets.md": presets_page,
}


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the pages whose text differs from what the code says."""
    found = []
    for name, make in PAGES.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != make():
            found.append(name)
    return found


def main(words: Sequence[str]) -> int:
    wrong = stale()
    if "--check" in words:
        print("\n".join(wrong) if wrong else "all pages are up to date")
        return 1 if wrong else 0
    for name in wrong:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8", newline="\n")
        print(f"wrote {FOLDER / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
