"""All samples of some prompts, kept as they come; what must be wrong with the server if they are no samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from nemo_rpo.data.files.read import read_records
from nemo_rpo.data.files.stage import Stage, read_table
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.sampling.asks import COLUMNS, FAILED, KEYS, LENGTH, STOP, Ask, Response, Sampler, seed_of
from nemo_rpo.serving.progress import counted

_TRIAL = 8  # prompts with several samples that tell whether the temperature counts
_FEWEST = 3  # samples of a prompt from which half of them being the same says something
_IDS = ("prompt_id", "id")


class TemperatureIgnored(ConfigError):
    """Samples that are no samples."""


class Prompt(NamedTuple):
    """A prompt: its key, the text or messages, and what else its row holds."""

    key: str
    text: Text
    fields: dict[str, Any]


@dataclass(frozen=True)
class Collected:
    """Samples of all prompts.

    Attributes:
        responses: all of them, in the order of the asks.
        kept: those that are whole: they ended by themselves, after having said something.
        counts: by finish.
    """

    responses: list[Response]
    kept: list[Response]
    counts: dict[str, int]

    def as_text(self) -> str:
        """How many there are, and how many were left out and why."""
        cut, failed = self.counts.get(LENGTH, 0), self.counts.get(FAILED, 0)
        empty = self.counts.get(STOP, 0) - len(self.kept)
        parts = [f"{len(self.responses):,} samples"]
        if empty:
            parts.append(f"{empty:,} empty and left out")
        if cut:
            parts.append(f"{cut:,} cut at the limit and left out (set max_tokens higher)")
        if failed:
            reason = Counter(r.error for r in self.responses if r.finish == FAILED).most_common(1)[0][0]
            parts.append(f"{failed:,} failed and left out (most often: {reason})")
        return ", ".join([*parts, f"{len(self.kept):,} kept"])


def read_prompts(paths: Iterable[Path]) -> list[Prompt]:
    """Prompts from files: rows with ``prompt``, a text or messages, and maybe ``prompt_id`` or ``id``; a prompt that
    comes again counts once.

    Raises:
        DataError: a row without a prompt, or an id that stands for two prompts.
    """
    found: dict[str, Prompt] = {}
    for path in paths:
        for record in read_records(path):
            if isinstance(record, DataError):
                raise record
            fields = Fields(record)
            text = fields.conversation("prompt")
            key = next((fields.identity(name, required=False) for name in _IDS if name in record.fields), None)
            key = key or prompt_key(text)
            if key in found and found[key].text != text:
                raise fields.error(f"id '{key}' already stands for another prompt; give each prompt its own")
            found.setdefault(key, Prompt(key, text, record.fields))
    return list(found.values())


def prompt_key(text: Text) -> str:
    """The key of a prompt without an id: a hash of its content."""
    return blake2b(json.dumps(text, sort_keys=True).encode(), digest_size=12).hexdigest()


def asks_for(prompts: Sequence[Prompt], samples: int, run: str, round: int) -> list[Ask]:
    """All asks, the samples of a prompt one after the other."""
    return [
        Ask(prompt.key, prompt.text, index, seed_of(run, round, prompt.key, index))
        for prompt in prompts
        for index in range(samples)
    ]


def collect(sampler: Sampler, asks: Sequence[Ask], out: Path, inputs: str, temperature: float) -> Collected:
    """The responses to all asks, in ``out`` once they are there; goes on from what an earlier call has left.

    Raises:
        ConfigError: ``out`` was made of other inputs.
        TemperatureIgnored: the server ignores the temperature; nothing is kept.
        ServerError: some are missing; those that are there are kept beside ``out``.
    """
    stage = Stage(out, COLUMNS, KEYS, inputs)
    wanted = {(ask.prompt, ask.index): ask for ask in asks}
    guard = _Alike(asks) if temperature else None
    try:
        if guard is not None and not stage.done:
            for row in list(stage.rows.values()):
                guard.add(row)
            guard.check()
        missing = [wanted[key] for key in stage.missing(wanted)]
        for response in counted(sampler.sample(missing), len(missing), "samples"):
            stage.add(response.row())
            if guard is not None:
                guard.add(response.row())
                guard.check()
    except TemperatureIgnored:
        stage.discard()  # none of it is a sample of the policy at this temperature
        raise
    finally:
        stage.close()
    return collected(Response.of(row) for row in stage.finish(wanted))


def read_responses(path: Path) -> Collected:
    """From a file that :func:`collect` wrote. Raises :class:`DataError` for another one."""
    rows, inputs = read_table(path)
    if inputs is None or (rows and not COLUMNS.keys() <= rows[0].keys()):
        raise DataError(f"{path} does not hold responses; write it with nemo-rpo sample")
    return collected(map(Response.of, rows))


def collected(responses: Iterable[Response]) -> Collected:
    """Counted, and those kept that are whole."""
    every = list(responses)
    kept = [response for response in every if response.finish == STOP and response.text.strip()]
    return Collected(every, kept, dict(Counter(response.finish for response in every)))


class _Alike:
    """Looks at the first prompts whose samples are all there: does a temperature make them differ?"""

    def __init__(self, asks: Sequence[Ask]) -> None:
        number = Counter(ask.prompt for ask in asks)
        trial = [prompt for prompt, samples in number.items() if samples >= _FEWEST][:_TRIAL]
        self._waited_for = {prompt: number[prompt] for prompt in trial}
        self._texts: dict[str, list[str]] = {prompt: [] for prompt in trial}

    def add(self, row: dict[str, Any]) -> None:
        """One response."""
        prompt = row["prompt"]
        if prompt in self._waited_for:
            self._waited_for[prompt] -= 1
            if row["finish"] != FAILED:
                self._texts[prompt].append(row["text"])

    def check(self) -> None:
        """Once all are there: raises :class:`TemperatureIgnored` where most have fewer than half of theirs distinct."""
        if any(self._waited_for.values()):
            return
        several = [texts for texts in self._texts.values() if len(texts) >= _FEWEST]
        alike = sum(2 * len(set(texts)) < len(texts) for texts in several)
        if 2 * alike > len(several):
            raise TemperatureIgnored(
                f"fewer than half of the samples differ, for {alike} of the first {len(several)} prompts: the server "
                "ignores the temperature (transformers serve does unless dialect is 'transformers'), or the policy has "
                "one answer only; their samples were thrown away"
            )
