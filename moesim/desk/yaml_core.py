"""The YAML 1.2 core schema: what a plain word means.

PyYAML follows YAML 1.1, where ``1e-6`` and ``5e9`` are text, ``no`` is false, ``12:30`` is 750 and ``010`` is 8. These few patterns are
section 10.3.2 of the YAML 1.2.2 specification, used for reading and for deciding what needs quotes when writing.
"""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None

NULL = re.compile(r"(?:~|null|Null|NULL)?")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")

TAG = "tag:yaml.org,2002:"
TAGS_OF_SCALARS = ("null", "bool", "int", "float", "str")


def plain(text: str) -> Scalar:
    """Return what a plain (unquoted) scalar means.

    Raises
    ------
    ValueError
        For an integer of more digits than Python converts.

    Examples
    --------
    >>> [plain(word) for word in ("1e-6", "no", "12:30", "0x1f", "~")]
    [1e-06, 'no', '12:30', 31, None]
    """
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text[0] in "tT"
    if INT.fullmatch(text):
        return _whole(text)
    if FLOAT.fullmatch(text):
        return _real(text)
    return text


def tagged(text: str, tag: str) -> Scalar:
    """Return what a scalar means under an explicit tag such as ``!!str``.

    Raises
    ------
    ValueError
        If the tag is not one of the core schema, or the text does not fit it.
    """
    word = tag.removeprefix(TAG)
    if not tag.startswith(TAG) or word not in TAGS_OF_SCALARS:
        raise ValueError(f"the tag {_written(tag)} has no meaning here; leave it out")
    if word == "str":
        return text
    pattern = {"null": NULL, "bool": BOOL, "int": INT, "float": FLOAT}[word]
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r} is not a YAML {word}")
    return _real(text) if word == "float" else plain(text)


def leading_zero(text: str) -> str:
    """Return what is wrong with a plain integer such as ``010``, or an empty string."""
    if not LEADING_ZERO.fullmatch(text):
        return ""
    digits = text.lstrip("+-").lstrip("0") or "0"
    octal = "" if set(digits) & {"8", "9"} else f", 0o{digits} if octal was meant,"
    return f"{text} has a leading zero: write {digits}{octal} or quotes if it is text"


def _written(tag: str) -> str:
    return f"!!{tag.removeprefix(TAG)}" if tag.startswith(TAG) else tag


def _whole(text: str) -> int:
    if text.startswith(("0o", "0x")):
        return int(text[2:], 8 if text[1] == "o" else 16)
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"a number of {len(text)} digits is too long") from error


def _real(text: str) -> float:
    word = text.lower()
    if word.endswith((".inf", ".nan")):
        return float(word.replace(".", ""))
    return float(text)


def anchored(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return a pattern that matches only whole texts, for callers that look at the start alone."""
    return re.compile(rf"(?:{pattern.pattern})\Z")
