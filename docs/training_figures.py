"""Predict every recorded training with the preset ``small-lm`` and write what came out.

    python docs/training_figures.py          predict, write tests/data/training_figures.json and the picture
    python docs/training_figures.py --anchors    write the published facts again, and nothing else
    python docs/training_figures.py --fit    fit the constants again first, and print them; moesim/models/router/law.py holds them

Takes some minutes. The page docs/validation.md has the table (docs/validation_page.py), docs/models/training.md the picture.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from moesim.desk.training_record import read_recorded
from moesim.models.router.law import LAWS
from moesim.study.training_anchors import anchors
from moesim.study.training_courses import Course, order, predict, score
from moesim.study.training_fit import fit

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT / "tests" / "data" / "trainings"
FIGURES = ROOT / "tests" / "data" / "training_figures.json"
PICTURE = ROOT / "docs" / "images" / "training.png"
PRESET = "small-lm"
FITTED = ("none-seed-0", "aux-0.01-seed-0", "aux-0.1-seed-1", "bias-0.001-seed-0")
"""Recordings that the constants were fitted to; all others are held back."""
NAMES = ("kind_share", "sequence_share", "feedback", "domain_feedback", "drive", "fading", "depth", "gain", "drift")
LAYERS = 4
SEEDS = (101, 102)
"""Of predictions; a prediction is the mean of these runs, and none is a seed of a recording."""


def name_of(path):
    return path.stem.removeprefix("training-")


def predicted(path, seed):
    return predict(read_recorded(path), seed=seed, preset=PRESET)


def mean_of(courses):
    return Course(**{name: np.mean([getattr(item, name) for item in courses], axis=0) for name in ("maxvio", "idle", "dropped")})


def row_of(path, recorded, found):
    def few(values):
        return [round(float(value), 4) for value in values]

    return {
        "file": path.name,
        "strategy": recorded.name,
        "seed": recorded.seed,
        "role": "fitted" if name_of(path) in FITTED else "held back",
        "median": round(found.median, 2),
        "bias": round(found.bias, 2),
        "end": few((found.end_predicted, found.end_recorded)),
        "idle": few((found.idle_predicted, found.idle_recorded)),
        "dropped": few((found.dropped_predicted, found.dropped_recorded)),
        "lost": [list(found.lost_predicted), list(found.lost_recorded)],
        "predicted": few(found.predicted),
        "recorded": few(found.recorded),
    }


def summary_of(rows, told, wrong):
    """Return the figures that the issue asks for, of recordings held back and of all."""
    found = {"pairs": told, "wrong_pairs": [list(pair) for pair in wrong]}
    for role in ("fitted", "held back"):
        mine = [row for row in rows if row["role"] == role]
        errors = [abs(one / other - 1) for row in mine for one, other in zip(row["predicted"], row["recorded"], strict=True)]
        lost = [[set(row["lost"][side]) for row in mine] for side in (0, 1)]
        both = sum(len(one & other) for one, other in zip(*lost, strict=True))
        found[role] = {
            "runs": len(mine),
            "median": round(100 * float(np.median(errors)), 2),
            "layers": sum(LAYERS for _ in mine),
            "lost_both": both,
            "lost_predicted_only": sum(map(len, lost[0])) - both,
            "lost_recorded_only": sum(map(len, lost[1])) - both,
        }
    return found


def draw(rows):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    across = 4
    down = -(-len(rows) // across)
    figure, axes = plt.subplots(down, across, figsize=(11, 2.2 * down), sharex=True, squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        steps = 50 * np.arange(len(row["recorded"])) + 25
        axis.plot(steps, row["recorded"], color="#444444", linewidth=1.5, label="recorded")
        axis.plot(steps, row["predicted"], color="#0072b2" if row["role"] == "fitted" else "#d55e00", linewidth=1.5, label=row["role"])
        axis.set_title(f"{row['strategy']}, seed {row['seed']}", fontsize=8)
        axis.set_ylim(0, 3.6)
        axis.legend(fontsize=7, frameon=False)
        axis.tick_params(labelsize=7)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel("MaxVio, mean over layers and 50 steps", fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def told_anchors():
    return [{name: getattr(item, name) for name in ("fact", "source", "published", "found", "holds", "chosen")} for item in anchors()]


def tell(number, error, law):
    print(number, f"{error:.4f}", {name: f"{getattr(law, name):.3g}" for name in NAMES}, flush=True)


def main() -> None:
    if "--anchors" in sys.argv[1:]:
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
        FIGURES.write_text(json.dumps(figures | {"anchors": told_anchors()}, indent=1) + "\n", encoding="utf-8")
        return
    paths = sorted(RECORDINGS.glob("training-*.json"))
    recordings = {name_of(path): read_recorded(path) for path in paths}
    with ProcessPoolExecutor() as pool:
        if "--fit" in sys.argv[1:]:
            print(fit([recordings[name] for name in FITTED], LAWS[PRESET], NAMES, times=4, evaluations=60,
                      play=lambda function, items: list(pool.map(function, items)), progress=tell))  # fmt: skip
            return
        # A prediction knows the strategy and not the seed of a recording: those of one strategy have one prediction.
        first = {}
        for path in paths:
            first.setdefault(recordings[name_of(path)].strategy, path)
        jobs = {strategy: [pool.submit(predicted, path, seed) for seed in SEEDS] for strategy, path in first.items()}
        played = {strategy: mean_of([job.result() for job in found]) for strategy, found in jobs.items()}
        courses = {path: played[recordings[name_of(path)].strategy] for path in paths}
    scores = {name_of(path): score(course, recordings[name_of(path)].course) for path, course in courses.items()}
    rows = [row_of(path, recordings[name_of(path)], scores[name_of(path)]) for path in paths]
    rows.sort(key=lambda row: (row["role"] != "fitted", row["strategy"], row["seed"]))
    told, wrong = order(scores)
    content = {"preset": PRESET, "seeds": SEEDS, "summary": summary_of(rows, told, wrong), "anchors": told_anchors(), "runs": rows}
    FIGURES.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(rows)


if __name__ == "__main__":
    main()
