"""Which languages a file is written in, and completions that are in another one than their prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.errors import missing_extra
from nemo_rpo.validation.texts import Problem, flat

# Below either bound py3langid's word is not taken: a few words, code and names are in no language or in several.
_CHARACTERS = 60
_PROBABILITY = 0.99
UNSURE = "unsure"


class LanguageChecks:
    """Tells languages by py3langid; about a quarter of a millisecond a text.

    Attributes:
        prompts: pairs by the language of their prompt (ISO 639-1), ``unsure`` among them.

    Raises:
        MissingExtraError: py3langid is not installed.
    """

    def __init__(self) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as exc:
            raise missing_extra("py3langid", "data") from exc
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self.prompts: Counter[str] = Counter()

    def __call__(self, row: PreferenceRow) -> Iterator[Problem]:
        """The problem of a row whose prompt and completions are long enough to be sure of."""
        prompt = self._language(flat(row.prompt))
        self.prompts[prompt] += 1
        sides = (("first", flat(row.chosen)), ("second", flat(row.rejected)))
        found = [(name, self._language(text)) for name, text in sides] if prompt != UNSURE else []
        other = [f"the {name} completion is {language}" for name, language in found if language not in (prompt, UNSURE)]
        if other:
            yield "other_language", f"{' and '.join(other)}, the prompt {prompt}"

    def _language(self, text: str) -> str:
        if len(text) < _CHARACTERS:
            return UNSURE
        language, probability = self._identifier.classify(text)
        return language if probability >= _PROBABILITY else UNSURE
