"""Write the figures of ``tests/data/validation_figures.json`` into ``docs/validation.md``, between its two marks.

python docs/validation_page.py            write the page
python docs/validation_page.py --check    only say whether it is out of date, and exit with 1 if it is
"""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "validation.md"
FIGURES = ROOT / "tests" / "data" / "validation_figures.json"
TARGETS = ROOT / "docs" / "validation_targets.json"
TRAININGS = ROOT / "tests" / "data" / "training_figures.json"
STEPS = ROOT / "tests" / "data" / "published_predictions.json"
EXACT = ("routing", "drop_rate", "eplb")
"""Tables whose rows are counted and not timed: their intervals are exact."""

BEGIN = "<!-- Figures: written by docs/validation_page.py from tests/data/validation_figures.json. Do not edit below. -->"
END = "<!-- End of the figures. -->"


def number(value, signed=False):
    return "–" if value is None else (f"{value:+.1f}" if signed else f"{value:.1f}")


def share(value):
    return "–" if value is None else f"{100 * value:.0f} %"


def table(heads, rows):
    return [
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join(["---"] * len(heads)) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def reached(target, scores):
    """Return the error of a class over its regimes (mean weighted by rows, or the worst), the baseline, and the rows."""
    found = [score for score in scores if fnmatch(score["table"], target["table"]) and fnmatch(score["regime"], target["regime"])]
    kind = target["error"]
    if kind == "ratio":
        parts = [(score["ratio"]["mape"], score["ratio"]["n"], score["ratio_baseline_mape"]) for score in found if score.get("ratio")]
    elif kind == "wrong winners":
        pairs = sum(score.get("pairs", 0) for score in found)
        return (100 * sum(score.get("wrong", 0) for score in found) / pairs if pairs else None), None, pairs
    elif kind == "wrong sign":
        told = sum(score.get("told", 0) for score in found)
        return (float(sum(score.get("wrong_sign", 0) for score in found)) if told else None), None, told
    elif kind == "wrong sign beyond chance":
        told = sum(score.get("told_beyond", 0) for score in found)
        return (100 * sum(score.get("wrong_beyond", 0) for score in found) / told if told else None), None, told
    elif kind == "worst":
        known = [score for score in found if score["worst"] is not None]
        return max((score["worst"] for score in known), default=None), None, sum(score["n"] for score in known)
    else:
        parts = [(score["mape"], score["n"], score["baseline_mape"]) for score in found]
    parts = [part for part in parts if part[0] is not None and part[1]]
    rows = sum(part[1] for part in parts)
    if not rows:
        return None, None, 0
    ruled = [part for part in parts if part[2] is not None]
    baseline = sum(part[2] * part[1] for part in ruled) / sum(part[1] for part in ruled) if ruled else None
    return sum(part[0] * part[1] for part in parts) / rows, baseline, rows


def verdict(target, value):
    if value is None:
        return "**not predicted**"
    return "met" if value <= target["target"] + 1e-9 else "**missed**"


def targets(figures):
    lines = []
    for target in json.loads(TARGETS.read_text(encoding="utf-8")):
        value, baseline, rows = reached(target, figures["held_back"])
        fit, _, _ = reached(target, figures["shipped"])
        lines.append([target["class"], target["asked"], number(value), number(fit), number(baseline), str(rows), verdict(target, value)])
    return table(["class", "asked", "held back", "fitted", "simple rule", "rows", "verdict"], lines)


def scores(listed):
    rows = [
        [f"`{score['table']}`", score["regime"], str(score["n"]), number(score["mape"]),
         number(score["median_ape"]), number(score["p90_ape"]), number(score["bias"], True), score["baseline"] or "–",
         number(score["baseline_mape"]), share(score["coverage"]), str(score["outside"] or "–")]
        for score in listed if score["n"]
    ]  # fmt: skip
    return table(["table", "regime", "rows", "mean", "median", "90th", "bias", "simple rule", "its mean", "in 90 %", "outside"], rows)


def covered(listed):
    """Return one sentence on the intervals of all rows that were held back from a fit."""
    known = [score for score in listed if score["coverage"] is not None and not any(map(score["table"].startswith, EXACT))]
    rows = sum(score["coverage_rows"] for score in known)
    inside = sum(score["coverage"] * score["coverage_rows"] for score in known)
    low = sum(score["coverage"] < 0.8 for score in known)
    said = (
        f"All together, {100 * inside / rows:.0f} % of {rows} measurements lie in the 90 % interval of their prediction; "
        f"in {low} of {len(known)} regimes fewer than 80 % do."
    )
    return [said, ""]


def orders(listed):
    rows = [
        [f"`{score['table']}`", score["regime"], "–" if score["rank_correlation"] is None else f"{score['rank_correlation']:.2f}",
         str(score["pairs"]), "–" if not score["pairs"] else f"{100 * score['wrong'] / score['pairs']:.1f} %"]
        for score in listed if "rank_correlation" in score and (score["pairs"] or score["rank_correlation"] is not None)
    ]  # fmt: skip
    return table(["table", "regime", "rank correlation", "pairs told apart", "wrong winners"], rows) if rows else []


def ratios(listed):
    rows = [
        [f"`{score['table']}`", score["regime"], str(score["ratio"]["n"]), number(score["ratio"]["mape"]),
         number(score["ratio"]["bias"], True), score["ratio_baseline"] or "–", number(score["ratio_baseline_mape"]),
         f"{score['wrong_sign']} of {score['told']}",
         f"{score['wrong_beyond']} of {score['told_beyond']}" if "told_beyond" in score else "–"]
        for score in listed if score.get("ratio") and score["ratio"]["n"]
    ]  # fmt: skip
    return (
        table(["table", "regime", "rows", "mean", "bias", "simple rule", "its mean", "wrong side of 1", "beyond chance"], rows)
        if rows
        else []
    )


def groups(figures):
    rows = [
        [f"`{item['table']}`", item["group"] or "–", str(item["n"]), number(item["mape"]), number(item["bias"], True)]
        for item in figures["groups"]
        if item["n"]
    ]
    return table(["table", "group that was held back", "rows", "mean", "bias"], rows)


def missing(figures):
    found = {}
    for score in figures["held_back"]:
        for item in score["unpredicted"]:
            key = (score["table"], item["reason"])
            found[key] = found.get(key, 0) + item["rows"]
    return table(
        ["table", "rows", "why there is no prediction"],
        [[f"`{name}`", str(rows), reason.replace("|", "/")] for (name, reason), rows in sorted(found.items())],
    )


def sealed_runs():
    """Return the errors of every committed run of the testbed whose predictions were sealed before it was measured."""
    rows = []
    for path in sorted((ROOT / "tests" / "data" / "measured").glob("*/comparison.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for sort, errors in document["sorts"].items():
            known = errors.get("at_speed")
            means = [number(errors["mean_abs_pct"]), number(errors["worst_pct"]), number(errors["bias_pct"], True)]
            of_speed = "–" if known is None else f"{known['mean_abs_pct']:.1f} / {known['worst_pct']:.1f}"
            rows.append([f"`{path.parent.name}`", sort, str(errors["n"]), *means, of_speed])
        order = document["order"]
        rows.append([f"`{path.parent.name}`", "order of layer cases", str(order["pairs"]), f"{order['wrong']} wrong", "–", "–", "–"])
    return table(["run", "cases", "number", "mean", "worst", "bias", "mean / worst at the cores' speed"], rows)


def trainings():
    """Return the table of recorded trainings, which docs/training_figures.py predicts."""
    figures = json.loads(TRAININGS.read_text(encoding="utf-8"))
    rows = [
        [f"`{row['strategy']}`, seed {row['seed']}", row["role"], number(row["median"]), number(row["bias"], True),
         " / ".join(f"{value:.2f}" for value in row["end"]),
         " / ".join(" ".join(f"{value:.1f}" for value in side) for side in row["layers"]),
         " / ".join(" ".join(f"{value:.1f}" for value in side) for side in row["idle_layers"]),
         "–" if not any(row["dropped"]) else " / ".join(f"{100 * value:.1f} %" for value in row["dropped"])]
        for row in figures["runs"]
    ]  # fmt: skip
    summary = figures["summary"]
    roles = [role for role in ("fitted", "held back", "sealed", "blind", "blind again") if role in summary]
    per_role = table(
        ["trainings", "number", "MaxVio over time, median error", "final MaxVio of each layer, median error", "runs that collapsed",
         "layers that lost experts", "number of such layers, predicted / recorded"],
        [[role, str(part["runs"]), f"{part['median']:.1f} %", f"{part['layer_median']:.1f} %", both_and_only(part, "collapsed"),
          both_and_only(part, "lost"), f"{part['layers_lost'][0]:.1f} / {part['layers_lost'][1]:.0f} of {part['layers']}"]
         for role in roles for part in [summary[role]]],
    )  # fmt: skip
    columns = ["training", "role", "median", "bias", "final MaxVio", "of each layer", "idle experts of each layer", "dropped"]
    orders = [ranking(label, summary["order"][key]) for label, key in RANKINGS]
    note = "Of runs and layers: both, predicted only, recorded only."
    return [*per_role, "", note, "", *orders, "", *table(columns, rows)]


RANKINGS = (("Fitted and held back", "old"), ("Blind again", "blind"), ("All of these", "all"))


def both_and_only(part, what):
    """Return how many are predicted and recorded, predicted only, and recorded only."""
    return ", ".join(str(part[f"{what}_{which}"]) for which in ("both", "predicted_only", "recorded_only"))


def ranking(label, order):
    """Return a line on the order of trainings and of strategies."""
    turned = order["wrong_strategy_pairs"]
    wrong = "; ".join(f"`{one}` and `{other}`" for one, other in turned) or "none"
    return (
        f"- {label}: of {order['strategy_pairs']} pairs of strategies further apart than seeds are, {len(turned)} are predicted the other "
        f"way round or alike ({wrong}); of {order['pairs']} pairs of single trainings whose final MaxVio differs by more than 10 %, seeds "
        f"of one strategy included, {len(order['wrong_pairs'])}."
    )


def anchors():
    """Return the table of published facts about routers in training, which docs/training_figures.py plays."""
    figures = json.loads(TRAININGS.read_text(encoding="utf-8"))
    rows = [
        [*(item[key] for key in ("fact", "source", "published", "found")), "yes" if item["holds"] else "**no**", "set" * item["chosen"]]
        for item in figures["anchors"]
    ]
    return table(["fact", "source", "published", "simulated", "holds", "a constant was"], rows)


def steps():
    """Return the table of steps that others published, which tests/published_steps.py predicts."""
    rows = []
    for row in json.loads(STEPS.read_text(encoding="utf-8")):
        known, mine, unit = row["published"], row["predicted"], row["unit"]
        both = known is not None and mine is not None
        error = 100 * (mine / known - 1) if both else None
        bound = row["bound_percent"]
        told = f"{known:.3g} {unit}" if known is not None else "not published"
        found = f"{mine:.3g} {unit}" if mine is not None else "not predicted"
        kept = "–" if bound is None or not both else f"{bound} %" if abs(error) <= bound else f"**missed** ({bound} %)"
        rows.append([row["source"], row["what"].replace("_", " "), told, found, number(error, True), kept])
    return table(["whose", "what", "published", "predicted", "error", "bound"], rows)


def domains(figures):
    rows = []
    for item in figures["ranges"]:
        if not item["carried_from"]:
            limits = "; ".join(f"{name} {least:g} to {most:g}" for name, (least, most) in item["range"].items())
            rows.append([item["profile"], f"`{item['section']}`", str(item["rows"]), limits or "–"])
    carried = sorted({(item["profile"], item["carried_from"]) for item in figures["ranges"] if item["carried_from"]})
    said = "; ".join(f"{profile} from {source}" for profile, source in carried)
    return [
        *table(["profile", "section", "rows", "fitted range"], rows),
        *([f"Carried over by ratios of data sheets: {said}.", ""] if said else []),
    ]


TEXTS = {
    "thresholds": """
The thresholds stand in `docs/validation_targets.json`; the numbers were set before anything was fitted, and [what was changed in the
classes afterwards](#chosen-after-looking-or-assumed) is told above. *Held back* is what counts: the errors of
rows whose whole group was left out of the fit. *Fitted* are the same rows with the shipped profile, which has seen them. Errors are mean
absolute ones in per cent unless the class says otherwise.""",
    "held_back": """
Each group of a table (a system with a number of GPUs or of nodes, or a shape) was predicted from fits to all other groups. *Bias* is the
mean signed error: below zero, the model is too fast. *In 90 %* is the share of measurements inside the 90 % interval of their prediction,
*outside* counts rows beyond the fitted range. Tables of which nothing is fitted (drops, loads, the testbed) are predicted as always.""",
    "fitted": """
The shipped profiles on the rows that they were fitted to. This shows what the form of a model cannot express, and no more.""",
    "order": """
Among configurations that compete in one experiment: does the prediction rank them as the measurement does? Only pairs whose measured
difference exceeds noise count.""",
    "ratios": """
Slow-down against balanced load, or time after against time before replication. *Beyond chance* counts pairs that differ by more than
noise and what two draws of their routing differ by, where a table holds one draw of each and does not record it.""",
    "sealed": """
All predictions of a run were written, with a hash of their own, before its first case was measured; signed single cases are in each
folder's `comparison.json`, and its README says why cases were missed. These figures are blind and stay as they are. The rows of the same
folders in other tables of this page are predicted by today's laws, which are younger: they are not blind.""",
    "trainings": """
MaxVio over the steps of trainings of a small language model under balancing strategies, windows of 50 steps, against the preset
`small-lm` of the source `training`; errors in per cent, then predicted / recorded in the last fifth. A layer has lost experts if more than
half an expert is idle (below 1 % of the mean load) on average over the last fifth; a run has collapsed if a layer has, a prediction if
most of its runs have. Strategies are in order if their final MaxVio is further apart than two standard deviations of what seeds make of
it. Trainings that are *sealed* were predicted before they were recorded, with constants older than the shipped ones
(`tests/data/trainings_sealed`); those that are *blind* with others that are older (`tests/data/trainings_blind`), those
that are *blind again* with the shipped ones (`tests/data/trainings_blind_again`). [A router that
trains](models/training.md) says what was fitted, and what was changed after looking.""",
    "anchors": """
With settings of their own (`moesim/study/training_anchors.py`), not with `small-lm`: the models of the papers are not recorded. Where a
constant was set to give the number, the line is no evidence.""",
    "steps": """
Whole layers and steps with shipped defaults; no parameter was fitted to them, but set-ups were chosen after errors had been seen, and
bounds were drawn around what was found: they guard against getting worse ([whole steps](models/whole-steps.md) says what was tried).
Errors are in per cent. Of marin the measured gain is that of a whole step, the predicted one that of its MoE layer
alone. Phases of the DeepSeek trace by themselves are not among the published figures that could be read; the predictions stand beside
the totals.""",
    "domains": """
Outside these ranges a prediction is flagged, and its interval is twice as wide.""",
}
PICTURE = "![Predicted against measured times, one panel for each table](images/validation.png)"


def body(figures):
    held, shipped = figures["held_back"], figures["shipped"]
    parts = [
        ("Against the thresholds", "thresholds", targets(figures)),
        ("Rows held back", "held_back", [*scores(held), *covered(held), PICTURE, ""]),
        ("Rows that were fitted", "fitted", scores(shipped)),
        ("Order of rivals", "order", orders(held)),
        ("Ratios", "ratios", ratios(held)),
        ("Sealed runs of the testbed", "sealed", sealed_runs()),
        ("Routers that train", "trainings", trainings()),
        ("Published facts about routers that train", "anchors", anchors()),
        ("Steps that others published", "steps", steps()),
        ("Every group, signed", "", groups(figures)),
        ("Not predicted", "", missing(figures)),
        ("Where each model applies", "domains", domains(figures)),
    ]
    lines = []
    for title, text, made in parts:
        if made:
            lines += [f"### {title}", "", *([TEXTS[text].strip(), ""] if text else []), *made]
    return "\n".join(lines)


def page():
    """Return the page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{body(json.loads(FIGURES.read_text(encoding='utf-8')))}\n{END}{after}"


def write():
    PAGE.write_text(page(), encoding="utf-8")


def main() -> None:
    if "--check" in sys.argv[1:]:
        if page() != PAGE.read_text(encoding="utf-8"):
            sys.exit("docs/validation.md is out of date: run python docs/validation_page.py")
    else:
        write()


if __name__ == "__main__":
    main()
