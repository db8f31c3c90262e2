"""Which tokenizer a run uses: small, picklable, and enough to build it and to tell it from another."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_rpo import nemo_toolkit
from nemo_rpo.data.tokenizers import files as megatron_tokenizers
from nemo_rpo.errors import DataError, first_line, missing_extra

DATE_FUNCTION = "strftime_now"  # how chat templates ask for the date

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
        end_responses: a response has its end token, which is scored.
        date: the day that a chat template which prints one is given; None for today.
        trust_remote_code: let a tokenizer that brings Python code run it.
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
    date: datetime.date | None = None
    trust_remote_code: bool = False
    end_responses: bool = True

    def dated(self) -> TokenizerSpec:
        """With today's date where the chat template prints one and none is set: all processes of a run share it."""
        return replace(self, date=datetime.date.today()) if self.date is None and self.prints_date() else self

    def prints_date(self) -> bool:
        """Whether the chat template in the folder asks for the date."""
        return any(DATE_FUNCTION.encode() in part for part in self._template_parts())

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
        if self.date is not None and self.prints_date():
            digest.update(f"date {self.date}".encode())
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
        parts = self._template_parts()
        digest = hashlib.sha256()
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest() if parts else "none"

    def _template_parts(self) -> list[bytes]:
        """The chat template: what ``tokenizer_config.json`` says, and the files beside it; nothing without one."""
        if self.folder is None:
            return []
        folder = Path(self.folder)
        files = sorted({*folder.glob("chat_template*"), *folder.glob("additional_chat_templates/*")})
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            config = {}
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{folder / 'tokenizer_config.json'} is no JSON ({first_line(exc)})") from exc
        if not isinstance(config, dict):
            raise DataError(f"{folder / 'tokenizer_config.json'} is no JSON object; restore the tokenizer's files")
        inside = config.get("chat_template")
        if inside is None and not files:
            return []
        return [json.dumps(inside).encode(), *(file.read_bytes() for file in files if file.is_file())]

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
        trusted = self.trust_remote_code
        try:
            # Said either way: where nothing is said, transformers asks the terminal whether to run the code.
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
        except ValueError as exc:
            if trusted or "trust_remote_code" not in str(exc):
                raise
            raise DataError(
                f"the tokenizer in {folder} is Python code in that folder, which is not run: read it, and set "
                "model.tokenizer.trust_remote_code=true where you trust it"
            ) from exc

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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
