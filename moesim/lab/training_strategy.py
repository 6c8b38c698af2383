"""What a trained router is kept even by: the strategies of ``moesim measure training``, as words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from moesim.base.errors import UsageError, did_you_mean

SCOPES = ("micro_batch", "sequence", "batch")
SCORINGS = ("softmax", "sigmoid")
NUMBERS = ("aux", "z", "bias", "noise", "capacity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a router chooses and what is added to its loss.

    Parameters
    ----------
    aux : float
        Coefficient of the balance loss (arXiv:2101.03961, equation 4, with shares of all k choices, as Megatron-LM computes it).
    scope : str
        Over which tokens it is taken: those of a rank, of a sequence, or of the step.
    z : float
        Coefficient of the z-loss (arXiv:2202.08906, equation 5).
    bias : float
        Rate of the loss-free bias (arXiv:2408.15664, algorithm 1); 0 for none.
    noise : float
        Standard deviation of normal noise on every logit, for the choice and the weights.
    capacity : float
        Capacity factor: a rank may send ceil(T k / E factor) tokens to each expert, the most probable ones; 0 drops nothing.
    scoring : str
        ``softmax`` or ``sigmoid``.
    """

    aux: float = 0.0
    scope: str = "micro_batch"
    z: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    capacity: float = 0.0
    scoring: str = "softmax"

    @property
    def name(self) -> str:
        """The words that :func:`strategy` reads back; ``none`` if nothing keeps the router even."""
        words = [f"{name}={getattr(self, name):g}" for name in NUMBERS if getattr(self, name)]
        if self.aux and self.scope != "micro_batch":
            words.insert(1, f"scope={self.scope}")
        if self.scoring != ("sigmoid" if self.bias else "softmax"):
            words.append(f"scoring={self.scoring}")
        return "+".join(words) or "none"

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.replace("=", "-").replace("_", "-"))


def strategy(text: str) -> Strategy:
    """Read a strategy such as ``none``, ``aux=0.01``, ``aux=0.01+scope=sequence+capacity=1.25`` or ``bias=0.001``.

    A bias goes with sigmoid scores unless ``scoring`` says otherwise, as in the models that have one.

    Raises
    ------
    UsageError
        Naming the word that is wrong.

    Examples
    --------
    >>> strategy("bias=0.001").scoring, strategy("aux=0.01+capacity=1.25").name
    ('sigmoid', 'aux=0.01+capacity=1.25')
    """
    found: dict[str, float | str] = {}
    for word in [] if text.strip() == "none" else text.split("+"):
        name, sign, value = (part.strip() for part in word.partition("="))
        if name not in (*NUMBERS, "scope", "scoring") or not sign:
            hint = did_you_mean(name, (*NUMBERS, "scope", "scoring", "none"))
            raise UsageError(
                f"--strategy {text!r}: unknown word {word.strip()!r}{hint}; write none, or words such as aux=0.01+capacity=1.25"
            )
        if name in found:
            raise UsageError(f"--strategy {text!r}: {name} is there twice")
        found[name] = _chosen(text, name, value) if name in {"scope", "scoring"} else _number(text, name, value)
    if found.get("bias") and "scoring" not in found:
        found["scoring"] = "sigmoid"
    return Strategy(**found)  # type: ignore[arg-type]


def _chosen(text: str, name: str, value: str) -> str:
    known = SCOPES if name == "scope" else SCORINGS
    if value not in known:
        raise UsageError(f"--strategy {text!r}: {name} {value!r} is none of {', '.join(known)}")
    return value


def _number(text: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise UsageError(f"--strategy {text!r}: {name} {value!r} is not a number") from None
    if not 0 <= number <= 1000 or not math.isfinite(number):
        raise UsageError(f"--strategy {text!r}: {name} {value} is out of range: it must be from 0 to 1000")
    return number
