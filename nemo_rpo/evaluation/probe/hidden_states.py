"""Hidden states of a frozen model over answers, from a Hugging Face folder; on the CPU, or wherever torch puts it.

Shapes: t texts, L layers, h hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.crowd.factors.answer_features import content_of
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, DataError, first_line, missing_extra
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings


class HiddenStates:
    """A frozen model that is asked what it makes of answers. It is read once, in fp32, without its output layer.

    Args:
        folder: Hugging Face's, with a tokenizer.
        settings: checked.

    Raises:
        ConfigError: there is no such folder, it cannot be read, or it has fewer layers than the settings name.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, folder: Path, settings: ProbeSettings) -> None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--probe needs a Hugging Face folder with a config.json; {folder} has none")
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as exc:
            raise missing_extra("transformers", "hf") from exc
        disable_progress_bar()
        try:
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as exc:
            raise ConfigError(f"--probe cannot read {folder}: {first_line(exc)}") from exc
        self._settings = settings
        count = int(self._model.config.num_hidden_layers) + 1
        for layer in settings.layers:
            if not -count <= layer < count:
                raise ConfigError(f"--probe-layers {layer}: {folder} has layers 0 (embeddings) to {count - 1}")
        asked = settings.layers or range(count)
        self.layers: list[int] = sorted({layer % count for layer in asked})

    def of(self, answers: Sequence[tuple[Text, Text]]) -> np.ndarray:
        """States of (prompt, answer) at every layer of ``layers``, float32 [L, t, h]; 4 L t h bytes are held.

        Raises:
            DataError: an answer without a token.
        """
        encoded = [self._encode(prompt, answer) for prompt, answer in answers]
        found: np.ndarray | None = None
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))  # texts of one length side by side
        for begin in range(0, len(order), self._settings.batch):
            places = order[begin : begin + self._settings.batch]
            states = self._batch([encoded[i] for i in places])
            if found is None:
                found = np.empty((states.shape[0], len(encoded), states.shape[2]), dtype=np.float32)
            found[:, places] = states
        return np.empty((len(self.layers), 0, 0), dtype=np.float32) if found is None else found

    def _encode(self, prompt: Text, answer: Text) -> tuple[list[int], int]:
        """Token ids, and where the answer begins."""
        asked = self._tokenizer(content_of(prompt)).input_ids
        if asked and asked[-1] == self._tokenizer.eos_token_id:  # some tokenizers end every text
            asked = asked[:-1]
        said = self._tokenizer(content_of(answer), add_special_tokens=False).input_ids[: self._settings.max_tokens]
        if not said:
            raise DataError(f"an answer has no token: {content_of(answer)[:60]!r}")
        room = self._settings.max_tokens - len(said)
        asked = asked[-room:] if room else []
        return asked + said, len(asked)

    def _batch(self, encoded: Sequence[tuple[list[int], int]]) -> np.ndarray:
        import torch

        longest = max(len(ids) for ids, _ in encoded)
        ids = torch.zeros((len(encoded), longest), dtype=torch.long)
        there = torch.zeros((len(encoded), longest), dtype=torch.long)
        answer = torch.zeros((len(encoded), longest))
        for row, (tokens, begin) in enumerate(encoded):  # padded at the end: causal models never look there
            ids[row, : len(tokens)] = torch.tensor(tokens)
            there[row, : len(tokens)] = 1
            answer[row, begin if self._settings.state == "mean" else len(tokens) - 1 : len(tokens)] = 1
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=there, output_hidden_states=True).hidden_states
            weight = (answer / answer.sum(1, keepdim=True))[..., None]
            return torch.stack([(states[layer].float() * weight).sum(1) for layer in self.layers]).numpy()
