"""Samples from the engine itself, with a key-value cache: no server, no export, any layout that text comes from."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nemo_rpo.data.files.read import read_records
from nemo_rpo.errors import ConfigError, DataError, ServerError
from nemo_rpo.sampling.asks import Ask, Response
from nemo_rpo.sampling.sampling_settings import SampleSettings

# Asks that ranks are started for at once: what is lost where they are killed, against some seconds of starting.
_PORTION = 4096


class EngineSampler:
    """A :class:`nemo_rpo.sampling.asks.Sampler`: ``nemo-rpo evaluate --generate samples`` on ranks of its own, a
    portion of the asks at a time. Use as a context, as a server's.

    A sample depends on its prompt and seed alone, so that what comes after a kill is what would have come without it.
    There is no canary: the ranks read the weights that they are told to.

    Args:
        settings: temperature, top_p, max_tokens and endpoint of them count; ``chat`` puts the tokenizer's chat template
            around texts.
        log: file for the output of the ranks.
        config: settings of the layout, a YAML file; None: those of the run that the policy belongs to.
        overrides: further settings, such as model.tensor_model_parallel_size=2.
        nproc_per_node: ranks; None: as many as the layout needs.
        where: what the settings are called in messages.

    Raises:
        ConfigError: texts that end a response, which only servers look for.
    """

    def __init__(
        self,
        settings: SampleSettings,
        log: Path,
        config: Path | None = None,
        overrides: Sequence[str] = (),
        nproc_per_node: int | None = None,
        where: str = "sample",
    ) -> None:
        if settings.stop:
            raise ConfigError(f"{where}.stop is for servers; the engine's samples end by their own token: unset it")
        self.settings, self.log, self.config = settings, log, config
        self.overrides, self.nproc_per_node, self.where = list(overrides), nproc_per_node, where
        self.policy: Path | None = None

    def __enter__(self) -> EngineSampler:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left running."""

    def use(self, policy: Path) -> None:
        """Samples come from these weights from now on: a Hugging Face folder, a run or one of its checkpoints."""
        self.policy = policy

    def sample(self, asks: Iterable[Ask]) -> Iterator[Response]:
        """See :class:`nemo_rpo.sampling.asks.Sampler`.

        Raises:
            ConfigError: no weights were named. ServerError: the ranks have failed; with their last line.
        """
        if self.policy is None:
            raise ConfigError(f"{self.where}: the engine samples from weights; name the policy")
        remaining = iter(asks)
        while portion := list(itertools.islice(remaining, _PORTION)):
            yield from self._portion(portion)

    def _portion(self, asks: Sequence[Ask]) -> Iterator[Response]:
        with tempfile.TemporaryDirectory(prefix="nemo-rpo-samples-") as folder:
            wanted, out = Path(folder, "asks.jsonl"), Path(folder, "samples.jsonl")
            with wanted.open("w", encoding="ascii") as file:
                for ask in asks:
                    row = {"prompt_id": ask.prompt, "prompt": ask.text, "index": ask.index, "seed": ask.seed}
                    file.write(json.dumps(row) + "\n")
            self._run(wanted, out)
            for record in read_records(out):
                if isinstance(record, DataError):
                    raise record
                yield Response.of(record.fields)

    def _run(self, wanted: Path, out: Path) -> None:
        s = self.settings
        command = [sys.executable, "-m", "nemo_rpo.cli", "evaluate", str(self.policy), str(wanted), *self.overrides]
        command += ["--generate", "samples", "--out", str(out), "--temperature", str(s.temperature)]
        command += ["--top-p", str(s.top_p), "--max-new-tokens", str(s.max_tokens)]
        command += ["model.tokenizer.use_chat_template=true"] if s.endpoint == "chat" else []
        command += ["--config", str(self.config)] if self.config else []
        command += ["--nproc-per-node", str(self.nproc_per_node)] if self.nproc_per_node else []
        own = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # these ranks are others
        environment = {name: value for name, value in os.environ.items() if name not in own}
        with self.log.open("ab") as log:
            status = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        if status:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1] if lines else "without a word"
            raise ServerError(
                f"{self.where}: the engine cannot sample from {self.policy} ({said}); the log is {self.log}"
            )
