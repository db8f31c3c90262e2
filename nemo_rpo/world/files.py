"""The world on disk: training rows, clean validation rows, the truth, and the model folder to start from.

==================== ===================================================================================================
``train.jsonl``      one label a pair: {"pair_id", "prompt", "chosen", "rejected", "annotator"}; several labels a pair:
                     {"pair_id", "prompt", "response_a", "response_b", "votes": [{"annotator", "vote": "a" | "b"}, ...]}
``validation.jsonl`` {"pair_id", "prompt", "chosen", "rejected"}, noise-free
``truth.json``       {"seed", "settings", "label_accuracy", "pretraining": {"loss", "entropy"},
                     "annotators": {id: {"reliability", "labels", "realised_accuracy"}}}
``model/``           Hugging Face folder: tokenizer, and the pre-trained Llama unless it was left out
==================== ===================================================================================================

Text is token words separated by spaces. The same settings and seed give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.errors import ConfigError
from nemo_rpo.world.language import Language, LanguageConfig, stream
from nemo_rpo.world.pretraining import PretrainConfig, pretrain
from nemo_rpo.world.simulated_annotators import AnnotatorConfig, Pairs, Votes, ask, draw_pairs
from nemo_rpo.world.tokenizer import save_tokenizer


@dataclass(frozen=True)
class WorldConfig:
    """A whole world.

    Attributes:
        seed: draws everything: tables, quality, texts, labels, the initial weights and the pre-training texts.
        min_gap: pairs whose gold qualities differ by less are not drawn.
        validation_pairs: fresh pairs with noise-free labels.
        pretrain: None leaves the model out (the tokenizer is written all the same).
    """

    seed: int = 0
    min_gap: float = 2.0
    validation_pairs: int = 2000
    language: LanguageConfig = field(default_factory=LanguageConfig)
    annotators: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    pretrain: PretrainConfig | None = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"world: seed must not be negative, got {self.seed}")
        if self.min_gap <= 0 or self.validation_pairs < 1:
            raise ConfigError(
                f"world: min_gap and validation_pairs must be positive, got {self.min_gap} and {self.validation_pairs}"
            )


def write_world(out: Path, config: WorldConfig) -> dict[str, Any]:
    """Write the world into the folder ``out`` (made if missing) and return what ``truth.json`` holds.

    Raises:
        ConfigError: settings that contradict each other.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    language = Language(config.language, config.seed)
    train_rng = stream(config.seed, "train")
    pairs = draw_pairs(language, config.annotators.pairs, config.min_gap, train_rng)
    fresh = draw_pairs(language, config.validation_pairs, config.min_gap, stream(config.seed, "validation"))
    votes = ask(config.annotators, stream(config.seed, "annotators"))
    truth = _truth(config, votes)

    model_dir = out / "model"
    save_tokenizer(config.language, model_dir)
    if config.pretrain is not None:
        truth["pretraining"] = pretrain(language, config.pretrain, config.seed, model_dir)
    rows = _single_rows if config.annotators.labels_per_pair == 1 else _vote_rows
    _write_jsonl(out / "train.jsonl", rows(pairs, votes, config.annotators.ids, train_rng))
    _write_jsonl(out / "validation.jsonl", _clean_rows(fresh))
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _truth(config: WorldConfig, votes: Votes) -> dict[str, Any]:
    annotators = {
        name: {
            "reliability": reliability,
            "labels": int((votes.annotator == k).sum()),
            "realised_accuracy": votes.realised_accuracy(k),
        }
        for k, (name, reliability) in enumerate(
            zip(config.annotators.ids, config.annotators.reliabilities, strict=True)
        )
    }
    return {
        "seed": config.seed,
        "settings": asdict(config),
        "label_accuracy": float(votes.correct.mean()),
        "annotators": annotators,
    }


def _single_rows(pairs: Pairs, votes: Votes, ids: tuple[str, ...], _: np.random.Generator) -> Iterator[dict[str, Any]]:
    for i in range(len(pairs)):
        responses = (Language.response_text(pairs.better[i]), Language.response_text(pairs.worse[i]))
        chosen, rejected = responses if votes.correct[i, 0] else responses[::-1]
        yield {
            "pair_id": f"train-{i:06d}",
            "prompt": Language.prompt_text(pairs.style[i]),
            "chosen": chosen,
            "rejected": rejected,
            "annotator": ids[votes.annotator[i, 0]],
        }


def _vote_rows(pairs: Pairs, votes: Votes, ids: tuple[str, ...], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    better_is_a = rng.random(len(pairs)) < 0.5  # the order of the responses must not give the answer away
    for i in range(len(pairs)):
        responses = (Language.response_text(pairs.better[i]), Language.response_text(pairs.worse[i]))
        response_a, response_b = responses if better_is_a[i] else responses[::-1]
        yield {
            "pair_id": f"train-{i:06d}",
            "prompt": Language.prompt_text(pairs.style[i]),
            "response_a": response_a,
            "response_b": response_b,
            "votes": [
                {"annotator": ids[k], "vote": "a" if correct == better_is_a[i] else "b"}
                for k, correct in zip(votes.annotator[i], votes.correct[i], strict=True)
            ],
        }


def _clean_rows(pairs: Pairs) -> Iterator[dict[str, Any]]:
    for i in range(len(pairs)):
        yield {
            "pair_id": f"validation-{i:06d}",
            "prompt": Language.prompt_text(pairs.style[i]),
            "chosen": Language.response_text(pairs.better[i]),
            "rejected": Language.response_text(pairs.worse[i]),
        }


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
