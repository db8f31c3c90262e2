"""The world's tokenizer: one token a word, in the files that ``AutoTokenizer`` reads."""

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.errors import missing_extra
from nemo_rpo.world.language import BOS, EOS, PAD, LanguageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_tokenizer(config: LanguageConfig) -> "PreTrainedTokenizerFast":
    """A word-level tokenizer: ``"s2 sep "`` becomes bos s2 sep; a response is encoded with
    ``add_special_tokens=False``.

    Like Llama's, it puts bos in front and never adds eos. A word outside the vocabulary becomes padding: NeMo tries
    some when it loads a tokenizer, and the world's own texts have none.

    Raises:
        MissingExtraError: transformers or tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError as exc:
        raise missing_extra(exc.name or "transformers", "hf") from exc
    words = config.vocabulary
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(config: LanguageConfig, directory: Path) -> None:
    """Write the tokenizer files into ``directory`` (made if missing)."""
    build_tokenizer(config).save_pretrained(str(directory))
