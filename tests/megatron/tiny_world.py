"""A four-layer Llama, a word tokenizer and pairs with noisy votes, of raw generator numbers: the same bits everywhere.

NumPy keeps the raw stream of PCG64 fixed between releases, but neither NumPy, torch nor transformers promises that of
its distributions or initialisers; so everything here is arithmetic on raw numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOOD, BAD = (tuple(f"{kind}{i}" for i in range(8)) for kind in ("good", "bad"))
PLAIN = tuple(f"plain{i}" for i in range(24))
WORDS = ("<pad>", "<s>", "</s>", *GOOD, *BAD, *PLAIN)  # 43: under TP=2 the padded vocabulary of 48 is split unevenly
RELIABILITY = {"ann": 0.95, "bob": 0.9, "cas": 0.8, "dee": 0.7, "eve": 0.2, "fay": 0.5}
STRANGER = "zoe"  # labels validation pairs alone, in the place of ann
HEADS, GROUPS, HEAD, HIDDEN, FFN, LAYERS = 4, 2, 8, 32, 48, 4
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(WORDS),
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,  # the gradients of first and last pipeline stage have to meet
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


class Numbers:
    """Uniform numbers from raw 64-bit ones."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> np.ndarray:
        """In [0, 1), float64 ``shape``."""
        return (self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53

    def below(self, bound: int) -> int:
        return int(self._bits.random_raw() % bound)

    def words(self, choices: tuple[str, ...], count: int) -> list[str]:
        return [choices[self.below(len(choices))] for _ in range(count)]


def weights(seed: int) -> dict[str, np.ndarray]:
    """Every weight of the model under its Hugging Face name: uniform, of the spread that keeps activations alive."""
    numbers = Numbers(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return ((numbers.uniform(rows, columns) - 0.5) * (12 / columns) ** 0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return (0.75 + 0.5 * numbers.uniform(HIDDEN)).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(len(WORDS), HIDDEN), "model.norm.weight": norm()}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": norm(),
            f"{name}.self_attn.q_proj.weight": matrix(HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.k_proj.weight": matrix(GROUPS * HEAD, HIDDEN),
            f"{name}.self_attn.v_proj.weight": matrix(GROUPS * HEAD, HIDDEN),
            f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD),
            f"{name}.post_attention_layernorm.weight": norm(),
            f"{name}.mlp.gate_proj.weight": matrix(FFN, HIDDEN),
            f"{name}.mlp.up_proj.weight": matrix(FFN, HIDDEN),
            f"{name}.mlp.down_proj.weight": matrix(HIDDEN, FFN),
        }
    return found


def write_model(folder: Path, seed: int = 1) -> Path:
    """The model and its tokenizer as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    save_file(weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def rows(count: int, seed: int, several_votes: bool = True) -> list[dict[str, Any]]:
    """Rows of the layout ``votes``: of two answers, the one with more good and fewer bad words is the better one.

    With ``several_votes`` every third pair has two to five votes, ties among them; otherwise one vote a pair.
    """
    numbers, annotators = Numbers(seed), list(RELIABILITY)
    made: list[dict[str, Any]] = []
    while len(made) < count:
        answers = [numbers.words(GOOD + BAD + PLAIN, 2 + numbers.below(8)) for _ in "ab"]
        worth = [sum(word in GOOD for word in answer) - sum(word in BAD for word in answer) for answer in answers]
        if worth[0] == worth[1]:
            continue
        better, worse = ("a", "b") if worth[0] > worth[1] else ("b", "a")
        votes = 2 + numbers.below(4) if several_votes and len(made) % 3 == 0 else 1
        first = numbers.below(len(annotators))
        ballots = []
        for vote in range(votes):
            name = annotators[(first + vote) % len(annotators)]
            right = numbers.uniform(1)[0] < RELIABILITY[name]
            tie = vote > 0 and numbers.below(5) == 0  # never the only vote of a pair
            ballots.append({"annotator": name, "vote": "tie" if tie else better if right else worse})
        prompt = " ".join(numbers.words(PLAIN, 2 + numbers.below(5))) + " "
        texts = {"response_a": " ".join(answers[0]), "response_b": " ".join(answers[1])}
        made.append({"pair_id": f"p{len(made)}", "prompt": prompt, **texts, "votes": ballots})
    return made


def rankings(count: int, seed: int, reliability: dict[str, float] = RELIABILITY) -> list[dict[str, Any]]:
    """Rows of the layout ``rankings``, of two to four answers each; an annotator who errs reverses the order."""
    numbers, annotators = Numbers(seed), list(reliability)
    made: list[dict[str, Any]] = []
    while len(made) < count:
        answers = [numbers.words(GOOD + BAD + PLAIN, 2 + numbers.below(8)) for _ in range(2 + numbers.below(3))]
        worth = [sum(word in GOOD for word in answer) - sum(word in BAD for word in answer) for answer in answers]
        if len(set(worth)) < len(worth):
            continue
        order = sorted(range(len(worth)), key=worth.__getitem__, reverse=True)
        name = annotators[len(made) % len(annotators)]
        if numbers.uniform(1)[0] >= reliability[name]:
            order.reverse()
        made.append(
            {
                "prompt": " ".join(numbers.words(PLAIN, 2 + numbers.below(5))) + " ",
                "responses": [" ".join(answers[i]) for i in order],
                "rewards": sorted((4 * numbers.uniform(len(order))).tolist(), reverse=True),
                "annotator": name,
            }
        )
    return made


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def make(folder: Path) -> Path:
    """``model/``, ``train.jsonl`` (160 pairs), ``single.jsonl`` (48, one vote each), ``validation.jsonl`` (21).

    ``rankings.jsonl`` (96), ``reversed.jsonl`` (320, all those of eve the wrong way round), ``rankings_of_two.jsonl``
    (48), and ``their_pairs.jsonl``, the same in another layout.
    """
    write_model(folder / "model")
    write_rows(folder / "train.jsonl", rows(160, seed=2))
    write_rows(folder / "single.jsonl", rows(48, seed=3, several_votes=False))
    write_rows(folder / "rankings.jsonl", rankings(96, seed=6))
    write_rows(folder / "reversed.jsonl", rankings(320, seed=7, reliability=dict.fromkeys(RELIABILITY, 1) | {"eve": 0}))
    of_two = [row for row in rankings(160, seed=8) if len(row["responses"]) == 2][:48]
    write_rows(folder / "rankings_of_two.jsonl", of_two)
    pairs = [{**row, **dict(zip(("chosen", "rejected"), row["responses"], strict=True))} for row in of_two]
    for row in pairs:
        del row["responses"], row["rewards"]
    write_rows(folder / "their_pairs.jsonl", pairs)
    measured = rows(21, seed=4)
    for row in measured:
        for vote in row["votes"]:
            vote["annotator"] = vote["annotator"].replace("ann", STRANGER)
    write_rows(folder / "validation.jsonl", measured)
    return folder
