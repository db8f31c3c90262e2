"""What a validation looks at, and the only place for its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.errors import ConfigError


@dataclass
class ValidationSettings:
    """How a file is validated.

    Attributes:
        keys: layout and keys of the rows.
        tokenizer: a Hugging Face tokenizer folder; without one nothing is said about tokens.
        use_chat_template: render plain-text rows with the tokenizer's chat template too.
        seq_length: tokens of prompt + response that training will have; goes with ``tokenizer``.
        languages: tell the languages of prompts and completions too; most of the time then goes into that.
        min_labels: signed labels below which an annotator is reported as hardly known. With the default number,
            reliability .75 is known to ±.25 at best, every label held against the truth: 1.96 √(.75·.25/12) = .245.
        examples: findings of each kind that are kept with their rows; all are counted.
    """

    keys: RowFormat = field(default_factory=RowFormat)
    tokenizer: str | None = None
    use_chat_template: bool = False
    seq_length: int | None = None
    languages: bool = False
    min_labels: int = 12
    examples: int = 20

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if (self.tokenizer is None) != (self.seq_length is None):
            raise ConfigError("--tokenizer and --seq-length go together: give the folder, and the length trained with")
        for name, least in (("seq_length", 2), ("min_labels", 0), ("examples", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
