"""Tokenizers of NeMo's and Megatron's recipes that are no Hugging Face folder, without NeMo: from their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemo_rpo.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from nemo_rpo.data.tokenizers.spec import TokenizerSpec


def build(spec: TokenizerSpec) -> Any:
    """Under the interface of a Hugging Face tokenizer, with the ids that NeMo's ``get_nmt_tokenizer`` gives.

    Raises:
        ConfigError: it needs NeMo's, or a file of it is not named.
        MissingExtraError: sentencepiece or transformers is not installed.
    """
    match spec.library, spec.type:
        case _ if spec.sentencepiece_legacy:
            raise ConfigError("model.tokenizer.sentencepiece_legacy needs NeMo's; run: pip install 'nemo-rpo[nemo]'")
        case ("sentencepiece", _) | ("megatron", "GPTSentencePieceTokenizer"):
            return SentencePiece(_named(spec, "model"))
        case "megatron", "GPT2BPETokenizer":
            return _gpt2(_named(spec, "vocab_file"), _named(spec, "merge_file"))
    what = f"model.tokenizer.library={spec.library}" + (f" with model.tokenizer.type={spec.type}" if spec.type else "")
    raise ConfigError(f"{what} is a tokenizer of NeMo's own; run: pip install 'nemo-rpo[nemo]'")


class SentencePiece:
    """The file of a sentencepiece model; it has no chat template."""

    chat_template = None

    def __init__(self, model: str) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as exc:
            raise missing_extra("sentencepiece", "sentencepiece") from exc
        self._processor = SentencePieceProcessor(model_file=model)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            None if found < 0 else found
            for found in (self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id())
        )

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Piece → id."""
        return {self._processor.id_to_piece(i): i for i in range(len(self))}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of ``text``; SentencePiece adds no special tokens."""
        return self._processor.encode(text)


def _gpt2(vocab_file: str, merge_file: str) -> Any:
    try:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast
    except ImportError as exc:
        raise missing_extra("transformers", "hf") from exc
    end = "<|endoftext|>"  # GPT-2's one special token
    bpe = ByteLevelBPETokenizer.from_file(vocab_file, merge_file)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, unk_token=end)


def _named(spec: TokenizerSpec, key: str) -> str:
    if (value := getattr(spec, key)) is None:
        raise ConfigError(f"model.tokenizer.{key} is not set: name the file of the tokenizer")
    return value
