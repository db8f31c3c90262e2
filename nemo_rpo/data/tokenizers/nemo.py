"""NeMo's tokenizers, built from the keys of ``model.tokenizer`` as NeMo's GPT recipes build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemo_rpo.errors import DataError, first_line, missing_extra
from nemo_rpo.nemo_toolkit import SWITCH

if TYPE_CHECKING:
    from nemo_rpo.data.tokenizers.spec import TokenizerSpec


def build(spec: TokenizerSpec) -> Any:
    """The tokenizer of ``get_nmt_tokenizer`` with the part of a Hugging Face tokenizer's interface that is used here.

    Where it wraps one, that one: NeMo has given it its special tokens by then.

    Raises:
        DataError: NeMo cannot build it.
        MissingExtraError: a package that NeMo imports is not installed.
    """
    try:
        from nemo.collections.common.tokenizers.tokenizer_utils import get_nmt_tokenizer
    except ImportError as exc:
        raise missing_extra(exc.name or "nemo_toolkit", "nemo") from exc
    try:
        built = get_nmt_tokenizer(
            library=spec.library,
            model_name=spec.folder or spec.type,
            tokenizer_model=spec.model,
            vocab_file=spec.vocab_file,
            merges_file=spec.merge_file,
            use_fast=True,
            legacy=spec.sentencepiece_legacy,
        )
    except Exception as exc:  # whatever the library behind it was led to
        raise DataError(
            f"nemo-toolkit cannot build the tokenizer of model.tokenizer ({spec.library}, {spec.name}): "
            f"{first_line(exc)}; {SWITCH}=own in the environment takes this package's own"
        ) from exc
    inner = getattr(built, "tokenizer", None)
    return inner if hasattr(inner, "apply_chat_template") else NemoTokenizer(built)


class NemoTokenizer:
    """A tokenizer of NeMo's own under the names that Hugging Face gives to the same things. It has no chat template."""

    chat_template = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            _id(tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")
        )

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Empty: NeMo's tokenizers have no ids beyond ``len()``."""
        return {}  # no id is beyond len()

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of ``text``; NeMo adds no special tokens."""
        return self._tokenizer.text_to_ids(text)


def _id(tokenizer: Any, name: str) -> int | None:
    """None where NeMo has no such token: it says so by -1, by the lack of the attribute, or by an error."""
    try:
        found = getattr(tokenizer, name)
    except (AttributeError, KeyError, NotImplementedError):
        return None
    return found if isinstance(found, int) and found >= 0 else None
