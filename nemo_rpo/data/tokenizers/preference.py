"""A tokenizer from a local folder or from files, and how a prompt and a response become tokens."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo import nemo_toolkit
from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.data.tokenizers import files as megatron_tokenizers
from nemo_rpo.errors import DataError, RPOError, first_line, missing_extra

# What AutoTokenizer reads, weights and training leftovers beside it excluded.
_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer and how it is used: small, picklable, and enough for :meth:`PreferenceTokenizer.load`.

    Attributes:
        folder: a Hugging Face model or tokenizer folder on this machine; None for the other libraries.
        use_chat_template: render plain-text rows with the chat template too; rows of messages always are.
        library, type, model, vocab_file, merge_file, sentencepiece_legacy: ``model.tokenizer`` in the settings.
    """

    folder: str | None
    use_chat_template: bool
    library: str = "huggingface"
    type: str | None = None
    model: str | None = None
    vocab_file: str | None = None
    merge_file: str | None = None
    sentencepiece_legacy: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.folder or self.model or self.vocab_file or self.type)

    def settings(self) -> dict[str, Any]:
        """``model.tokenizer`` of a NeMo configuration that means this tokenizer."""
        named = {"type": self.folder or self.type, "model": self.model}
        named |= {"vocab_file": self.vocab_file, "merge_file": self.merge_file}
        return {"library": self.library, **named, "sentencepiece_legacy": self.sentencepiece_legacy}

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the ids, without loading the tokenizer.

        Raises:
            DataError: no such folder, or no tokenizer in it.
        """
        digest = hashlib.sha256()
        if (toolkit := nemo_toolkit.version()) is not None:
            digest.update(f"nemo_toolkit {toolkit}".encode())
        if self.folder is None:
            digest.update(f"{self.library} {self.type} {self.sentencepiece_legacy}".encode())
            for file in self._files():
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            digest.update(f"sentencepiece {_version('sentencepiece')} tokenizers {_version('tokenizers')}".encode())
            return digest.hexdigest()
        folder = self._existing_folder()
        files = sorted({file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})
        if not files:
            raise DataError(f"no tokenizer in {folder} (tokenizer.json, tokenizer.model, …); set model.tokenizer.type")
        if not (folder / "tokenizer_config.json").is_file() and (folder / "config.json").is_file():
            files.append(folder / "config.json")  # then it is the model type that picks the tokenizer's class
        for file in files:
            digest.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
        # Releases have changed how the same files tokenise (legacy Llama, prefix spaces).
        digest.update(f"transformers {_version('transformers')} tokenizers {_version('tokenizers')}".encode())
        return digest.hexdigest()

    def template_fingerprint(self) -> str:
        """SHA-256 over the chat template, "none" without one: which part of :meth:`fingerprint` it is."""
        if self.folder is None:
            return "none"
        folder, digest = Path(self.folder), hashlib.sha256()
        config = folder / "tokenizer_config.json"
        inside = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
        files = sorted({*folder.glob("chat_template*"), *folder.glob("additional_chat_templates/*")})
        if inside is None and not files:
            return "none"
        for part in (json.dumps(inside).encode(), *(file.read_bytes() for file in files)):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def build(self) -> Any:
        """The tokenizer itself: NeMo's where nemo-toolkit is in use.

        Raises:
            RPOError: no such folder or file, or a tokenizer that nothing here can build.
        """
        folder = None if self.folder is None else str(self._existing_folder())
        self._files()
        if nemo_toolkit.version() is not None:
            from nemo_rpo.data.tokenizers import nemo as tokenizer

            return tokenizer.build(self)
        if folder is None:
            return megatron_tokenizers.build(self)
        try:
            from transformers import AutoTokenizer
        except ImportError as exc:
            raise missing_extra("transformers", "hf") from exc
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def _existing_folder(self) -> Path:
        folder = Path(self.folder)
        if not folder.is_dir():
            raise DataError(f"tokenizer folder {folder} does not exist; set model.tokenizer.type to a local folder")
        return folder

    def _files(self) -> list[Path]:
        files = []
        for key in ("model", "vocab_file", "merge_file"):
            if (path := getattr(self, key)) is not None:
                if not Path(path).is_file():
                    raise DataError(f"model.tokenizer.{key}={path} is no file on this machine")
                files.append(Path(path))
        return files


class PreferenceTokenizer:
    """Renders pairs of prompt and response into ids.

    Attributes:
        vocab_size: ids are below it, added tokens included.
        bos_id, eos_id: ``None`` where the tokenizer has none.
        pad_id: a real id to fill batches with: pad, else eos, else 0. Never scored.
    """

    def __init__(self, tokenizer: Any, use_chat_template: bool, name: str) -> None:
        tokenizer.model_max_length = sys.maxsize  # the limit is seq_length; a warning a row would bury the log
        self.tokenizer = tokenizer
        self.use_chat_template = use_chat_template
        self.name = name
        self.vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._line_break = self._ids("\n")
        self.pad_id: int = next((i for i in (tokenizer.pad_token_id, self.eos_id) if i is not None), 0)

    @classmethod
    def load(cls, spec: TokenizerSpec) -> PreferenceTokenizer:
        """Raises :class:`RPOError` if the tokenizer cannot be used; nothing of ours reaches for the network."""
        try:
            tokenizer = spec.build()
        except RPOError:
            raise
        except Exception as exc:  # transformers raises whatever the damaged file led it to
            raise DataError(f"the tokenizer in {spec.name} cannot be loaded: {first_line(exc)}") from exc
        if spec.use_chat_template and not tokenizer.chat_template:
            raise DataError(
                f"the tokenizer in {spec.name} has no chat template; add chat_template.jinja to the folder "
                "or set model.tokenizer.use_chat_template=false"
            )
        return cls(tokenizer, spec.use_chat_template, spec.name)

    def render(self, prompt: Text, response: Text) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt and of the response, int32 [p] and [r].

        Messages, and text with ``use_chat_template``, go through the chat template: the prompt is the conversation up
        to and including the header of the assistant's turn, the response what the template adds to that, end-of-turn
        token included. Plain text is ``[bos] + prompt`` and ``response + [eos]``. A response of several messages is as
        in :meth:`render_turns`.

        Raises:
            DataError: messages without a chat template, or a template that rejects them or rewrites the prompt once the
                response is known.
        """
        if isinstance(response, list) and len(response) > 1:
            return self.render_turns(prompt, response)[:2]
        if self.use_chat_template or not (isinstance(prompt, str) and isinstance(response, str)):
            head, tail = self._through_template(_messages(prompt, "user"), _messages(response, "assistant"))
            return self._split(head, tail)
        prompt_ids, response_ids = self._split(prompt, response)
        bos = [] if self.bos_id is None else [self.bos_id]
        eos = [] if self.eos_id is None else [self.eos_id]
        return (
            np.concatenate([np.array(bos, dtype=np.int32), prompt_ids]),
            np.concatenate([response_ids, np.array(eos, dtype=np.int32)]),
        )

    def render_turns(self, prompt: Text, response: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`render`, and the response's runs (:mod:`nemo_rpo.data.turns`), int32 [r].

        Of a response of several messages each assistant message is a turn: what the template adds to everything before
        it and the header of the turn. Each piece is tokenised as it came to the policy, after what stood there already.
        What follows the last turn is left out: nothing of it is scored.
        """
        if not (isinstance(response, list) and len(response) > 1):
            prompt_ids, response_ids = self.render(prompt, response)
            return prompt_ids, response_ids, np.array([len(response_ids)], dtype=np.int32)
        head, pieces = self._dialogue(_messages(prompt, "user"), response)
        prompt_ids, text, ids = self._ids(head), head, []
        for piece in pieces:
            ids.append(self._split(text, piece)[1] if piece else np.empty(0, dtype=np.int32))
            text += piece
        return prompt_ids, np.concatenate(ids), np.array([len(of) for of in ids], dtype=np.int32)

    def _dialogue(self, prompt: Messages, response: Messages) -> tuple[str, list[str]]:
        """The prompt, and the response in pieces: a turn of the assistant, what stands before the next, and so on."""
        turns = [i for i, message in enumerate(response) if message["role"] == "assistant"]
        if not turns:
            raise DataError("a completion of several messages has none of the assistant's")
        said = [self._through_template(prompt + response[:i], response[i : i + 1]) for i in turns]
        head = said[0][0] if turns[0] == 0 else self._apply(prompt)
        text, pieces = head, [] if turns[0] == 0 else [""]
        for before, turn in said:
            if not before.startswith(text):
                raise DataError(
                    f"the chat template of {self.name} rewrites what was said once the dialogue goes on, so no model "
                    "has seen the completion as it would be scored; use a template that only appends"
                )
            pieces += [turn] if not pieces else [before[len(text) :], turn]
            text = before + turn
        return head, pieces

    def _split(self, prompt: str, response: str) -> tuple[np.ndarray, np.ndarray]:
        # The prompt is tokenised alone: these are the ids the policy is given when it has to answer, and they must be
        # the same beside both responses. The response is what the joint text adds to them, so that a response gets the
        # ids it has inside a text (no second sentence-start mark, no stray space). Where a token would grow over the
        # boundary, the policy could never have produced it after that prompt: the response then follows a line break.
        prompt_ids = self._ids(prompt)
        for context, context_ids in ((prompt, prompt_ids), ("\n", self._line_break)):
            joint = self._ids(context + response)
            if np.array_equal(joint[: len(context_ids)], context_ids):
                return prompt_ids, joint[len(context_ids) :]
        return prompt_ids, self._ids(response)

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def _through_template(self, prompt: Messages, response: Messages) -> tuple[str, str]:
        if not self.tokenizer.chat_template:
            raise DataError(f"the row has messages, but the tokenizer in {self.name} has no chat template")
        whole = self._apply(prompt + response)
        # Some templates open a turn in another way for generation than in a record (a <think> block); without the
        # generation header the prompt is a prefix of the record all the same.
        for header in (True, False):
            head = self._apply(prompt, add_generation_prompt=header)
            if whole.startswith(head):
                return head, whole[len(head) :]
        raise DataError(
            f"the chat template of {self.name} rewrites the prompt once a response follows, so the two responses would "
            "not share one prompt; use a template that only appends"
        )

    def _apply(self, messages: Messages, **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as exc:  # a template raises what it likes: jinja2's errors, its own raise_exception
            raise DataError(f"the chat template of {self.name} rejects the row: {first_line(exc)}") from exc


def _messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
