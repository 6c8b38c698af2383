"""Hash layers: the word decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError, PluginError
from moesim.base.fields import Choice, Count, NotNegative, Text
from moesim.base.registry import plugin, register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.scoring import SCORINGS, Scored
from moesim.models.gate.select import chosen, finite_scores
from moesim.models.gate.word_tables import balanced_table, random_table, zipf_words

WHO = "gate 'hash'"


@register("gate", "hash")
@dataclass(frozen=True, slots=True, kw_only=True)
class Hash(Scored):
    """Look the experts of a token up in a fixed table by its vocabulary id; loads then follow how often words occur.

    The first ``layers`` MoE layers do so, the others have the gate ``then``. Gate weights come from the scores of the looked-up experts;
    without scores each of k choices has 1 / k.

    Parameters
    ----------
    words : str
        ``recorded``: the vocabulary ids of the routing; it is refused if there are none. ``zipf``: drawn independently, word r (from 0)
        in proportion to (r + 1) ** -exponent; all layers of a step see the same words.
    exponent : float
        Of ``zipf``, and of the frequencies that a ``balanced`` table assumes; word 0 is the most frequent.
    table : str
        ``random``: every word has k distinct experts, all equally likely, other ones in each layer. ``balanced``: words are dealt in the
        order of their frequency, each to the k experts that have least so far.
    vocabulary : int or None
        Words; the model's by default.
    layers : int or None
        How many MoE layers; by default the model's ``hash_layers``, or all if it has none.
    then : str
        The kind of gate of the other layers, with its defaults.

    Notes
    -----
    Sources: Roller et al., arXiv:2106.04426, section 3 (random and balanced hash); DeepSeek-V4 uses a table in its first 3 MoE layers, with
    weights from the learned scores (sgl-project/sglang, ``srt/layers/moe/hash_topk.py``). Tables of trained models are not shipped: the
    random table stands for them.
    """

    scoring: Annotated[str, Choice(SCORINGS)] = "sqrtsoftplus"
    words: Annotated[str, Choice(("recorded", "zipf"))] = "recorded"
    exponent: NotNegative = 1.0
    table: Annotated[str, Choice(("random", "balanced"))] = "random"
    vocabulary: Count | None = None
    layers: Count | None = None
    then: Text = "as_given"

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; words come from the stream ``gate, hash, words, step``, tables from ``gate, hash, table, layer``.

        Raises
        ------
        PluginError
            If the vocabulary is unknown, or there is no such gate as ``then``.
        """
        model = setting.model
        words = self.vocabulary or model.vocabulary
        if not words:
            raise PluginError(f"{WHO}: the model {model.name} does not say how many words it knows; write vocabulary: (a number)")
        layers = self.layers or model.hash_layers or len(model.moe_layers)
        after: Choose = plugin("gate", self.then)().begin(setting)
        tables: dict[int, NDArray[np.int32]] = {}

        def table(moe_layer: int) -> NDArray[np.int32]:
            if moe_layer not in tables:
                rng = setting.rng("gate", "hash", "table", moe_layer)
                if self.table == "random":
                    tables[moe_layer] = random_table(rng, words, model.experts, model.top_k)
                else:
                    tables[moe_layer] = balanced_table(rng, words, model.experts, model.top_k, self.exponent)
            return tables[moe_layer]

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            if moe_layer >= layers:
                return after(routing, step=step, moe_layer=moe_layer)
            if self.words == "zipf":
                routing.need_ids(WHO)
                spoken = zipf_words(setting.rng("gate", "hash", "words", step), routing.tokens, words, self.exponent)
            else:
                spoken = known_words(routing, words)
            ids = table(moe_layer)[spoken]
            return chosen(routing, ids, self._weights(routing, ids))

        return choose

    def _weights(self, routing: LayerRouting, ids: NDArray[Any]) -> NDArray[np.float32]:
        if routing.scores is None:
            return np.full(ids.shape, 1 / ids.shape[1], dtype=np.float32)
        scores = self.score(finite_scores(routing, WHO))
        # An expert that the scores rule out has weight 0: the table does not ask them.
        return self.weigh(np.where(np.isneginf(scores), np.finfo(np.float32).min if self._raw else np.float32(0), scores), ids)

    @property
    def _raw(self) -> bool:
        """Whether scores are logits, of which the softmax is still to be taken."""
        return self.scoring == "softmax" and not self.pre_softmax


def known_words(routing: LayerRouting, vocabulary: int) -> NDArray[Any]:
    """Return int[T], the vocabulary id of each token.

    Raises
    ------
    FidelityError
        If the routing does not have them, or has one beyond the vocabulary.
    """
    spoken = routing.need_vocabulary_ids(f"{WHO} with words: recorded (words: zipf draws them)")
    wrong = np.flatnonzero((spoken < 0) | (spoken >= vocabulary))
    if wrong.size:
        raise FidelityError(
            f"{WHO}: token {int(wrong[0])} has the vocabulary id {int(spoken[wrong[0]])}, but there are words 0 to {vocabulary - 1} only; "
            "check the recording, or write vocabulary: (a number)"
        )
    return spoken
