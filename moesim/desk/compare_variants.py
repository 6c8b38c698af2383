"""What is compared: the variants of the file's ``compare:`` section, and those of the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from moesim.base.errors import ScenarioError, UsageError, did_you_mean
from moesim.desk.matrix import read_words
from moesim.desk.scenario_file import load_scenario
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace

AS_WRITTEN = "as_written"
"""The name of the file's own policy, with the overrides of the command line, where no variant has that name."""

MOST = 200
"""Variants of one comparison; more is a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A name, and the whole scenario that it stands for; its own variants are left out."""

    name: str
    scenario: Scenario


def read_variants(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    given: Iterable[str] = (),
    *,
    baseline: str | None = None,
    read_trace: Callable[..., Trace] | None = None,
) -> tuple[tuple[Variant, ...], str]:
    """Return the variants to compare and the name of their baseline.

    Parameters
    ----------
    file : path
        A scenario file.
    words : iterable of str
        ``key=value`` lays a value over the file for every variant; ``key=value,value`` makes a variant of each value, several such keys
        one of each combination, and these take the place of the file's ``compare``.
    given : iterable of str
        ``name:key=value,key=value``: further variants, which may change any key.
    baseline : str, optional
        The first variant if left out. ``as_written`` is the file's own policy, whether a variant or not.
    read_trace : callable, optional
        Reads a trace for the check of the scenario.

    Raises
    ------
    ScenarioError
        If the file or an override is wrong.
    UsageError
        If there are fewer than two variants, two have one name, or the baseline is none of them.
    """
    plain, axes = _sorted(words)
    own = load_scenario(file, plain, read_trace=read_trace)
    base = replace(own, compare={})

    def load(overrides: Sequence[str]) -> Scenario:
        return replace(load_scenario(file, [*plain, *overrides], read_trace=read_trace), compare={})

    if axes:
        found = [
            Variant(name=" ".join(name for name, _ in combination), scenario=load([word for _, word in combination]))
            for combination in product(*axes)
        ]
    else:
        found = [Variant(name=name, scenario=replace(base, policy=policy)) for name, policy in own.compare.items()]
    extra = [_given(text) for text in given]
    _refuse_repeats([variant.name for variant in found], [name for name, _ in extra])
    if not found or (baseline == AS_WRITTEN and all(variant.name != AS_WRITTEN for variant in found)):
        found.insert(0, Variant(name=AS_WRITTEN, scenario=base))
    found += [Variant(name=name, scenario=load(overrides)) for name, overrides in extra]
    names = [variant.name for variant in found]
    _refuse_repeats(names, [])
    if len(found) < 2:
        there = "one variant only" if own.compare else "no variants"
        raise UsageError(
            f"{os.fspath(file)} has {there} to compare: name at least two under compare, give a key several values "
            "(policy.capacity.factor=1.0,1.25), or add --variant NAME:KEY=VALUE"
        )
    if baseline is not None and baseline not in names:
        raise UsageError(f"--baseline names no variant: {baseline!r}{did_you_mean(baseline, [*names, AS_WRITTEN])}")
    return tuple(found), baseline if baseline is not None else names[0]


def several(text: str) -> list[str]:
    """Split a value at its commas, but not at those inside brackets, braces or quotes.

    Examples
    --------
    >>> several("1.0, 1.25"), several("[0, 1]"), several("{kind: eplb, redundant: 8},contiguous")
    (['1.0', '1.25'], ['[0, 1]'], ['{kind: eplb, redundant: 8}', 'contiguous'])
    """
    parts, depth, quote, start = [], 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not text[start:index].strip():
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _sorted(words: Iterable[str]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Return the words with one value, and for each with several the name and the word of every value."""
    axes, plain, problems = read_words(words)
    if problems:
        raise ScenarioError(problems)
    keys = [axis.key for axis in axes]
    if "seed" in keys:
        raise UsageError("seed is not for comparing: every variant is played with the same seeds, seed, seed + 1, …; say --replicates")
    if prod(len(axis.settings) for axis in axes) > MOST:
        raise UsageError(f"these keys make more than {MOST} variants; 'moesim sweep' is made for so many")
    found = []
    for axis in axes:
        short = _short(axis.key, keys)
        named = [setting.label if isinstance(setting.label, str) else json.dumps(setting.label) for setting in axis.settings]
        # JSON is YAML on one line.
        texts = [json.dumps(setting.node.data(), ensure_ascii=False) for setting in axis.settings]
        found.append([(f"{short}={name}", f"{axis.key}={text}") for name, text in zip(named, texts, strict=True)])
    return plain, found


def _short(key: str, keys: Iterable[str]) -> str:
    """Return the end of a dotted key that tells it from the others; of a section's kind, the section.

    Examples
    --------
    >>> _short("policy.capacity.factor", ["policy.capacity.factor", "routing.kind"]), _short("routing.kind", ["routing.kind"])
    ('factor', 'routing')
    """

    def parts(dotted: str) -> list[str]:
        words = dotted.split(".")
        return words[:-1] if len(words) > 1 and words[-1] in {"kind", "rule"} else words

    mine, others = parts(key), [parts(other) for other in keys if other != key]
    count = next((n for n in range(1, len(mine)) if all(other[-n:] != mine[-n:] for other in others)), len(mine))
    return ".".join(mine[-count:])


def _given(text: str) -> tuple[str, list[str]]:
    """Return the name and the overrides of ``name:key=value,key=value``."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not colon or not name or "=" in name:
        raise UsageError(f"--variant {text}: write NAME:KEY=VALUE[,KEY=VALUE...], for example tight:policy.capacity.factor=1.0")
    overrides = several(rest) if rest.strip() else []
    odd = next((word for word in overrides if "=" not in word), None)
    if odd is not None:
        raise UsageError(f"--variant {text}: {odd!r} is not KEY=VALUE; a value with commas needs brackets around it")
    if any(word.partition("=")[0].strip() == "seed" for word in overrides):
        raise UsageError(f"--variant {text}: seed is not for comparing: every variant is played with the same seeds")
    return name, overrides


def _refuse_repeats(names: Sequence[str], more: Sequence[str]) -> None:
    every = [*names, *more]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two variants are called {twice!r}; give each its own name")
