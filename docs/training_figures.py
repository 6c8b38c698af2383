"""Predict recorded trainings with the preset ``small-lm`` and write what came out.

    python docs/training_figures.py            predict, write tests/data/training_figures.json and the picture
    python docs/training_figures.py --anchors  write the published facts again, and nothing else
    python docs/training_figures.py --fit      go on fitting the constants from where they are, and print them: hours
    python docs/training_figures.py --seal     predict trainings that are not recorded yet, once (SEALS says which, and where)

Takes some minutes. The page docs/validation.md has the table (docs/validation_page.py), docs/models/training.md the picture.
"""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from moesim.desk.training_record import read_recorded
from moesim.lab.training_strategy import strategy as strategy_of
from moesim.models.router.law import LAWS
from moesim.study.training_anchors import anchors
from moesim.study.training_courses import Course, Strategy, lost_layers, order, order_of_strategies, predict, score, seed_noise
from moesim.study.training_fit import fit

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT / "tests" / "data" / "trainings"
FIGURES = ROOT / "tests" / "data" / "training_figures.json"
PICTURE = ROOT / "docs" / "images" / "training.png"
PRESET = "small-lm"
FITTED = (
    "none-seed-0", "aux-0.01-seed-0", "aux-0.1-seed-1", "bias-0.001-seed-0",
    "none-seed-30", "none-seed-31", "aux-0.0005-seed-32", "noise-0.5-seed-33",
    "bias-0.005-seed-34", "capacity-1-seed-35", "z-0.03-seed-36", "aux-0.01-z-0.03-seed-38",
    "aux-0.005-seed-39", "capacity-1-seed-41", "bias-0.0002-seed-50", "z-0.003-seed-51",
)  # fmt: skip
"""Recordings that the constants were fitted to, beside eight of the blind ones after those had been compared; the others are held back."""
NAMES = (
    "kind_share", "sequence_share", "feedback", "domain_feedback", "kind_feedback", "drive", "growth",
    "scale", "domain_drift", "gain", "domain_gain", "kind_gain", "reach", "floor",
    "common", "limit", "noise_push", "noise_growth", "sigmoid_push", "drop_push",
)  # fmt: skip
DATA = ROOT / "tests" / "data"
SEALS = {
    "sealed": (DATA / "trainings_sealed", ("none", "aux=0.0003", "aux=0.003", "aux=0.03", "bias=0.003", "bias=0.001+capacity=1")),
    "blind": (DATA / "trainings_blind", ("aux=0.002", "bias=0.0003", "aux=0.005+noise=0.5", "z=0.01", "none", "aux=0.03+capacity=1")),
    "blind again": (
        DATA / "trainings_blind_again",
        ("none", "aux=0.0015", "aux=0.02", "aux=0.007+noise=0.4", "aux=0.005+capacity=1", "bias=0.0005", "bias=0.002", "z=0.006"),
    ),
}
"""By role, a folder and the strategies that were predicted in it before any of them was recorded; ``none`` with seeds that were new."""
PREDICTIONS = "predictions.json"
SEEDS = (101, 102, 103, 104)
"""Of predictions; a prediction is the mean of these runs, and none is a seed of a recording."""
ROLES = ("fitted", "held back", *SEALS)
RANKED = {"old": ("fitted", "held back"), "blind": ("blind again",), "all": ("fitted", "held back", "blind again")}
"""Of which roles the trainings are ranked together: those that are predicted with the shipped constants."""


def name_of(path):
    return path.stem.removeprefix("training-")


def played(recorded, seed):
    return predict(recorded, seed=seed, preset=PRESET)


def mean_of(courses):
    return Course(**{name: np.mean([getattr(item, name) for item in courses], axis=0) for name in ("maxvio", "idle", "dropped")})


def few(values):
    return [round(float(value), 4) for value in values]


def row_of(path, role, recorded, courses):
    found = score(mean_of(courses), recorded.course)
    tail = slice(-(len(recorded.course.maxvio) // 5), None)
    return {
        "file": path.name,
        "strategy": recorded.name,
        "seed": recorded.seed,
        "role": role,
        "median": round(found.median, 2),
        "bias": round(found.bias, 2),
        "end": few((found.end_predicted, found.end_recorded)),
        "layers": [few(course.maxvio[tail].mean(axis=0)) for course in (mean_of(courses), recorded.course)],
        "idle": few((found.idle_predicted, found.idle_recorded)),
        "idle_layers": [few(course.idle[tail].mean(axis=0)) for course in (mean_of(courses), recorded.course)],
        "dropped": few((found.dropped_predicted, found.dropped_recorded)),
        "lost": [list(found.lost_predicted), list(found.lost_recorded)],
        "played": len(courses),
        # Of the runs of a prediction, how many lost experts in some layer; and in how many layers on average.
        "collapsed": [sum(bool(lost_layers(course.idle)) for course in courses), int(bool(found.lost_recorded))],
        "layers_lost": [round(float(np.mean([len(lost_layers(course.idle)) for course in courses])), 2), len(found.lost_recorded)],
        "predicted": few(found.predicted),
        "recorded": few(found.recorded),
    }


def summary_of(rows):
    """Return the figures that the issue asks for, by role."""
    found = {}
    for role in ROLES:
        mine = [row for row in rows if row["role"] == role]
        if not mine:
            continue
        errors = [abs(one / other - 1) for row in mine for one, other in zip(row["predicted"], row["recorded"], strict=True)]
        by_layer = [abs(one / other - 1) for row in mine for one, other in zip(*row["layers"], strict=True)]
        lost = [[set(row["lost"][side]) for row in mine] for side in (0, 1)]
        both = sum(len(one & other) for one, other in zip(*lost, strict=True))
        told = [(2 * row["collapsed"][0] > row["played"], bool(row["collapsed"][1])) for row in mine]
        found[role] = {
            "runs": len(mine),
            "median": round(100 * float(np.median(errors)), 2),
            "layer_median": round(100 * float(np.median(by_layer)), 2),
            "layers": sum(len(row["layers"][1]) for row in mine),
            "lost_both": both,
            "lost_predicted_only": sum(map(len, lost[0])) - both,
            "lost_recorded_only": sum(map(len, lost[1])) - both,
            "layers_lost": [round(sum(row["layers_lost"][side] for row in mine), 2) for side in (0, 1)],
            "collapsed_both": sum(one and other for one, other in told),
            "collapsed_predicted_only": sum(one and not other for one, other in told),
            "collapsed_recorded_only": sum(other and not one for one, other in told),
        }
    return found


def orders_of(rows, scores):
    """Return both countings of the ranking: pairs of trainings, and pairs of strategies."""
    # Sealed predictions are written with four digits; more would tell apart what is one prediction.
    told, wrong = order({name: replace(found, end_predicted=round(found.end_predicted, 4)) for name, found in scores.items()})
    ends = {}
    for row in rows:
        ends.setdefault(row["strategy"], []).append(row["end"])
    recorded = {name: [end[1] for end in values] for name, values in ends.items()}
    noise = seed_noise(recorded)
    pairs, turned = order_of_strategies({name: values[0][0] for name, values in ends.items()}, recorded, noise)
    return {
        "pairs": told,
        "wrong_pairs": [list(pair) for pair in wrong],
        "seed_noise": round(noise, 4),
        "strategy_pairs": pairs,
        "wrong_strategy_pairs": [list(pair) for pair in turned],
    }


def draw(rows):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"fitted": "#0072b2", "held back": "#d55e00", "sealed": "#009e73", "blind": "#cc79a7", "blind again": "#e69f00"}
    across = 6
    down = -(-len(rows) // across)
    figure, axes = plt.subplots(down, across, figsize=(13, 1.9 * down), sharex=True, squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        steps = 50 * np.arange(len(row["recorded"])) + 25
        axis.plot(steps, row["recorded"], color="#444444", linewidth=1.5, label="recorded")
        axis.plot(steps, row["predicted"], color=colours[row["role"]], linewidth=1.5, label=row["role"])
        axis.set_title(f"{row['strategy']}, seed {row['seed']}", fontsize=8)
        top = max(*row["recorded"], *row["predicted"])
        axis.set_ylim(0, 3.6 if top < 3.6 else 8)
        axis.legend(fontsize=7, frameon=False)
        axis.tick_params(labelsize=7)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel("MaxVio, mean over layers and 50 steps", fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def told_anchors():
    return [{name: getattr(item, name) for name in ("fact", "source", "published", "found", "holds", "chosen")} for item in anchors()]


def plain(course):
    return {name: np.round(getattr(course, name), 4).tolist() for name in ("maxvio", "idle", "dropped")}


def seal():
    """Write predictions of trainings that nobody has recorded; refuse to write them twice."""
    open_ = {folder: names for folder, names in SEALS.values() if not (folder / PREDICTIONS).exists()}
    if not open_:
        raise SystemExit("every folder of SEALS has its predictions: what is sealed is not predicted again")
    pattern = read_recorded(RECORDINGS / f"training-{FITTED[0]}.json")
    for folder, names in open_.items():
        wanted = {name: replace(pattern, name=name, strategy=Strategy(**asdict(strategy_of(name)))) for name in names}
        with ProcessPoolExecutor() as pool:
            jobs = {name: [pool.submit(played, item, seed) for seed in SEEDS] for name, item in wanted.items()}
            courses = {name: [plain(job.result()) for job in found] for name, found in jobs.items()}
        folder.mkdir(exist_ok=True)
        text = json.dumps({"preset": PRESET, "law": asdict(LAWS[PRESET]), "seeds": SEEDS, "strategies": courses}) + "\n"
        (folder / PREDICTIONS).write_text(text, encoding="utf-8")
        print(folder.name, hashlib.sha256(text.encode()).hexdigest())


def tell(number, error, law):
    print(number, f"{error:.4f}", {name: dict(law.deep)[name] for name in NAMES}, flush=True)


def sealed_courses(folder):
    """Return the sealed predictions of each strategy in a folder."""
    content = json.loads((folder / PREDICTIONS).read_text(encoding="utf-8"))
    return {
        name: [Course(**{key: np.array(values) for key, values in course.items()}) for course in courses]
        for name, courses in content["strategies"].items()
    }


def main() -> None:
    if "--anchors" in sys.argv[1:]:
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
        FIGURES.write_text(json.dumps(figures | {"anchors": told_anchors()}, indent=1) + "\n", encoding="utf-8")
        return
    if "--seal" in sys.argv[1:]:
        seal()
        return
    paths = sorted(RECORDINGS.glob("training-*.json"))
    recordings = {path: read_recorded(path) for path in paths}
    roles = {path: "fitted" if name_of(path) in FITTED else "held back" for path in paths}
    with ProcessPoolExecutor() as pool:
        if "--fit" in sys.argv[1:]:
            fitted = [recordings[RECORDINGS / f"training-{name}.json"] for name in FITTED]
            print(fit(fitted, LAWS[PRESET], NAMES, times=3, seeds=SEEDS, by_layer=True, evaluations=400,
                      play=lambda function, items: list(pool.map(function, items)), progress=tell))  # fmt: skip
            return
        # A prediction knows the strategy and not the seed of a recording: those of one strategy have one prediction.
        first = {}
        for path in paths:
            first.setdefault(recordings[path].strategy, recordings[path])
        jobs = {strategy: [pool.submit(played, item, seed) for seed in SEEDS] for strategy, item in first.items()}
        found = {strategy: [job.result() for job in runs] for strategy, runs in jobs.items()}
    courses = {path: found[recordings[path].strategy] for path in paths}
    for role, (folder, _) in SEALS.items():
        told = sealed_courses(folder)
        for path in sorted(folder.glob("training-*.json")):
            recordings[path] = read_recorded(path)
            roles[path], courses[path] = role, told[recordings[path].name]
    rows = [row_of(path, roles[path], recorded, courses[path]) for path, recorded in recordings.items()]
    rows.sort(key=lambda row: (ROLES.index(row["role"]), row["strategy"], row["seed"]))
    scores = {path.name: score(mean_of(courses[path]), recorded.course) for path, recorded in recordings.items()}
    orders = {}
    for label, chosen in RANKED.items():
        mine = [row for row in rows if row["role"] in chosen]
        orders[label] = orders_of(mine, {row["file"]: scores[row["file"]] for row in mine})
    content = {"preset": PRESET, "seeds": SEEDS, "summary": summary_of(rows) | {"order": orders}, "anchors": told_anchors(), "runs": rows}
    FIGURES.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(rows)


if __name__ == "__main__":
    main()
