"""Every question has its command, and a picture that shows what it says to look at."""

import importlib.util
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


def drawn() -> list:
    spec = importlib.util.spec_from_file_location("question_pictures", DOCS / "question_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return list(module.questions())


def test_every_question_has_a_picture_of_its_own_and_no_picture_is_left_over():
    asked = drawn()
    assert len(asked) == 13
    assert sorted(question.picture for question in asked) == sorted((DOCS / "images" / "questions").glob("*.png"))


def test_pictures_are_large_enough_to_be_read_and_show_something():
    for question in drawn():
        with Image.open(question.picture) as picture:
            assert picture.width > 500, question.title
            assert len(picture.convert("RGB").getcolors(100_000)) > 10, question.title
