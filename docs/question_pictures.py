"""Draw the pictures of ``howto/one-command-per-question.md``: play each question's command, and photograph the figure it tells to look at.

    python docs/question_pictures.py [WORD]...    those whose question contains a word; without one, all

A figure is photographed by Chromium, which must be installed; where a command writes the picture itself, that one is taken. Takes about a
minute. The page names the pictures, so that a question without one does not go unnoticed (``tests/docs``).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "howto" / "one-command-per-question.md"
WIDTH, HEIGHT = 1160, 1800
"""Pixels of the photograph, before its empty margin is cut off."""
MARGIN = 16


class Question(NamedTuple):
    """A section of the page: its title, its command, what to look at, and the picture that shows it."""

    title: str
    command: str
    figure: str
    picture: Path


def questions() -> Iterator[Question]:
    """Read the page."""
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for title, body in sections:
        command = re.search(r"^\$ (moesim .*)$", body, re.MULTILINE)
        figure, picture = re.search(r"Look at [*`](.+?)[*`]", body), re.search(r"!\[.+?\]\((.+?)\)", body)
        if command is None or figure is None or picture is None:
            raise SystemExit(f"{PAGE.name}: the section {title!r} needs a command, 'Look at *figure*' and a picture")
        yield Question(title, command[1], figure[1], (PAGE.parent / picture[1]).resolve())


def play(command: str, folder: Path) -> None:
    """Run the command of a question, with its results in a folder."""
    words = [word for word in shlex.split(command)[1:] if word != "--quiet"]
    if "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    moesim = Path(sys.executable).with_name("moesim")
    subprocess.run([moesim, *words, "-o", folder], cwd=DOCS.parent, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def photograph(report: Path, heading: str, picture: Path) -> None:
    """Let Chromium draw one figure of a report, and cut off what is empty around it."""
    page = report.read_text(encoding="utf-8")
    found = [block for block in re.findall(r"<figure id=.*?</figure>", page, re.DOTALL) if f"<h3>{heading}</h3>" in block]
    if not found:
        names = ", ".join(re.findall(r"<figure id=.*?<h3>(.*?)</h3>", page, re.DOTALL))
        raise SystemExit(f"{report} has no figure {heading!r}; it has {names}")
    style = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    alone = f'<!doctype html><html><meta charset="utf-8">{style}<body><main>{found[0]}</main></body></html>'
    html, shot = report.with_name("figure.html"), report.with_name("figure.png")
    html.write_text(alone, encoding="utf-8")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium here: install the package 'chromium' to photograph figures")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
    size = f"--window-size={WIDTH},{HEIGHT}"
    subprocess.run([browser, *flags, size, f"--screenshot={shot}", html.as_uri()], check=True, capture_output=True)
    cut(shot, picture)


def cut(shot: Path, picture: Path) -> None:
    """Write a picture without the empty margin around it, in as many colours as a drawing has."""
    whole = Image.open(shot).convert("RGB")
    pixels = np.asarray(whole)
    drawn = (pixels != pixels[-1, -1]).any(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    box = (columns[0] - MARGIN, rows[0] - MARGIN, columns[-1] + MARGIN, rows[-1] + MARGIN)
    box = (max(box[0], 0), max(box[1], 0), min(box[2], whole.width), min(box[3], whole.height))
    picture.parent.mkdir(parents=True, exist_ok=True)
    whole.crop(box).quantize(128).save(picture, optimize=True)


def main(words: list[str]) -> None:
    """Draw the pictures of the questions that contain one of the words."""
    for question in questions():
        if words and not any(word.lower() in question.title.lower() for word in words):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "results"
            play(question.command, folder)
            if question.figure.endswith(".png"):
                cut(folder / question.figure, question.picture)
            else:
                photograph(folder / "report.html", question.figure, question.picture)
        print(question.picture.relative_to(DOCS))


if __name__ == "__main__":
    main(sys.argv[1:])
