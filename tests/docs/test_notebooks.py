"""Notebooks run, and their stored outputs are what comes out: cell by cell, without Jupyter."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re

import matplotlib as mpl
import pytest
from docs.pages import DOCS, ROOT

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def parts(text):
    """A text without tags: its words, and its numbers."""
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
    numbers = [float(number.replace(",", "").replace("−", "-")) for number in NUMBER.findall(text)]
    return NUMBER.sub("#", text).split(), numbers


def alike(stored, now):
    """The same words, and numbers that differ in what a library's last digit may change, at most."""
    (words, numbers), (words_now, numbers_now) = parts(stored), parts(now)
    assert words == words_now
    assert numbers == pytest.approx(numbers_now, rel=0.02, abs=0.02)


def run(source, names):
    """Run a cell; return what it printed and what its last line is worth."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    value = None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return out.getvalue(), value


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_gives_the_outputs_that_are_in_it(path, monkeypatch):
    pytest.importorskip("pandas")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(ROOT)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    names = {"__name__": "__main__"}
    with mpl.rc_context():
        mpl.use("agg")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            printed, value = run("".join(cell["source"]), names)
            stored = cell["outputs"]
            assert not any(output["output_type"] == "error" for output in stored)
            alike("".join("".join(output["text"]) for output in stored if output["output_type"] == "stream"), printed)
            results = [output["data"] for output in stored if output["output_type"] == "execute_result"]
            assert len(results) == (value is not None)
            for data in results:
                alike("".join(data["text/plain"]), repr(value))
                if "text/html" in data:
                    alike("".join(data["text/html"]), value._repr_html_())
            pictures = [output["data"] for output in stored if output["output_type"] == "display_data"]
            assert len(pictures) == len(shown)
            assert all("image/png" in data for data in pictures)
            shown.clear()
            plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small_and_whole(path):
    assert path.stat().st_size < 500_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"] >= 5) == (4, True)
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run from top to bottom, in one go
    assert all("".join(cell["source"]).strip() and "id" in cell for cell in notebook["cells"])


def test_there_is_a_notebook_and_the_manual_links_to_it():
    assert NOTEBOOKS
    linked = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("index.md", "reference/python.md"))
    assert all(f"notebooks/{path.name}" in linked for path in NOTEBOOKS)


def test_a_number_that_is_another_one_is_noticed():
    alike("<b>step</b> 34.7 ms", "step 34.7 ms")
    for other in ("step 36.0 ms", "steps 34.7 ms", "step 34.7 s", "step 34.7 ms 1"):
        with pytest.raises(AssertionError):
            alike("step 34.7 ms", other)
