"""What a probe prefers of two words in the same sentence: a question of bias.

A file of word pairs has a row each: ``first`` and ``second`` (words, or whole answers), and where they stand in a
sentence ``template`` with ``{}``; ``prompt`` and ``name`` (of a group of rows) are optional. The probe, fitted to all
labels, gives each pair a log-odds; a group's mean is given with the 95 % interval that the probe's own fit leaves it.
The rows of a group are what the user chose to ask: the interval says nothing of words that were not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.errors import DataError, RowError
from nemo_rpo.evaluation.probe.hidden_states import HiddenStates
from nemo_rpo.evaluation.probe.probe_of_file import FileProbe
from nemo_rpo.shares import Z


@dataclass(frozen=True)
class WordPair:
    """Two texts that differ in a word; ``name`` is of their group."""

    name: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class WordPreference:
    """Of a group of word pairs: mean log-odds of the first with its 95 % interval, share that prefers the first."""

    name: str
    pairs: int
    log_odds: float
    low: float
    high: float
    prefers_first: float


def read_word_pairs(path: Path) -> list[WordPair]:
    """The rows of a file of any format.

    Raises:
        DataError: a row without ``first`` and ``second``, or a template without one ``{}``; names file and row.
    """
    found = []
    [path] = as_paths([path], setting="--word-pairs", folders=True)
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = record.fields
        words = [str(fields.get(name) or "") for name in ("first", "second")]
        if not all(words):
            raise RowError(record.file, record.row, "a word pair needs first and second", "no_words")
        template = str(fields.get("template") or "{}")
        if template.count("{}") != 1:
            raise RowError(record.file, record.row, "template must have {} once, where the words stand", "no_words")
        texts = [template.replace("{}", word) for word in words]
        name = str(fields.get("name") or " / ".join(words))
        found.append(WordPair(name, str(fields.get("prompt") or ""), *texts))
    return found


def word_preferences(pairs: Sequence[WordPair], states: HiddenStates, found: FileProbe) -> list[WordPreference]:
    """What the probe of the best layer prefers, by group in the order of the rows."""
    best = found.probe.best
    answers = [(pair.prompt, text) for pair in pairs for text in (pair.first, pair.second)]
    of_layer = states.of(answers)[states.layers.index(best.layer)]
    x = (of_layer[0::2] - of_layer[1::2]) / best.foretold.scale
    theta, spread = best.scale * best.foretold.theta, found.covariance()
    answered = []
    for name in dict.fromkeys(pair.name for pair in pairs):
        mine = x[[pair.name == name for pair in pairs]]
        middle = mine.mean(0)
        mean, error = float(middle @ theta), best.scale * float(np.sqrt(middle @ spread @ middle))
        first = float((mine @ theta > 0).mean())
        answered.append(WordPreference(name, len(mine), mean, mean - Z * error, mean + Z * error, first))
    return answered
