"""What decides the content of a token cache, and the key made of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, as_paths
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.data.truncation import TRUNCATION_RULE
from nemo_rpo.digests import digest_of
from nemo_rpo.errors import ConfigError, DataError

INVALID_PAIRS = ("error", "drop")
CACHE_VERSION = 5  # raised whenever the same input would give other files


@dataclass(frozen=True)
class CacheSpec:
    """Everything that decides what is in a cache.

    Attributes:
        paths: data files, in order; held as a tuple of existing ones.
        keys: layout and keys of the rows.
        tokenizer: folder and use of the chat template.
        seq_length: tokens of prompt + response.
        group_votes: see :class:`nemo_rpo.data.pairs.PairLedger`.
        invalid_pairs: ``error`` or ``drop``, for pairs whose completions are empty, identical or too long.
        keep_ties: pairs that are ties stay, with a column ``tie`` that is 1 there and 0 elsewhere; most losses must not
            be given them.
    """

    paths: Paths
    keys: RowFormat
    tokenizer: TokenizerSpec
    seq_length: int
    group_votes: bool
    invalid_pairs: str
    keep_ties: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(as_paths(self.paths)))
        object.__setattr__(self, "tokenizer", self.tokenizer.dated())
        if self.invalid_pairs not in INVALID_PAIRS:
            choices = " or ".join(INVALID_PAIRS)
            raise ConfigError(f"model.data.invalid_pairs is '{self.invalid_pairs}'; it can be {choices}")

    def ingredients(self) -> dict:
        """What the key is a hash of; reads the data files and the tokenizer's, tokenises nothing.

        Raises:
            DataError: one of them cannot be read.
        """
        return {
            "version": CACHE_VERSION,
            # Names, not folders: errors and reports quote them, and moving the data must not cost a build.
            "data": [[path.name, _content(path)] for path in self.paths],
            "keys": [self.keys.layout, self.keys.annotator_key, self.keys.pair_id_key],
            "columns": dict(self.keys.columns),
            "tokenizer": self.tokenizer.fingerprint(),
            "use_chat_template": self.tokenizer.use_chat_template,
            **({} if self.tokenizer.end_responses else {"end_responses": False}),
            "truncation": TRUNCATION_RULE,
            "seq_length": self.seq_length,
            "group_votes": self.group_votes,
            "invalid_pairs": self.invalid_pairs,
            "keep_ties": self.keep_ties,
            **({"players": list(self.keys.players)} if self.keys.players else {}),
        }


def cache_key(ingredients: dict) -> str:
    """SHA-256 of :meth:`CacheSpec.ingredients`, hexadecimal."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as exc:
        raise DataError(f"data file {path} cannot be read ({exc.strerror or exc})") from exc
