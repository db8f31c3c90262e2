"""The day that a chat template which prints the date is given: one for a run, however often it is resumed."""

from __future__ import annotations

import datetime
from pathlib import Path

from nemo_rpo.config.schema import TokenizerConfig
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.process.rank0 import on_first_rank

_FILE = ".template_date"


def record_date(folder: Path, spec: TokenizerSpec, fresh: bool) -> None:
    """Where the chat template prints a date, rank 0 writes today into the run's folder, of a resumed run only if there
    is none yet. Collective over the world.

    Raises:
        RPOError: on every rank; the tokenizer's files are damaged, or the folder cannot be written.
    """

    def write() -> None:
        if not spec.prints_date():
            return
        file = folder / _FILE
        try:
            if fresh or not file.is_file():
                file.write_text(datetime.date.today().isoformat(), encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"the run's folder {folder} cannot be written ({exc.strerror})") from exc

    on_first_rank(write)


def template_date(settings: TokenizerConfig, folder: Path) -> datetime.date | None:
    """``model.tokenizer.date``, else the day recorded in the run's folder; None where there is neither.

    Raises :class:`ConfigError` for what is no date.
    """
    if settings.date is not None:
        return _parsed(settings.date, "model.tokenizer.date")
    try:
        recorded = (folder / _FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return _parsed(recorded, str(folder / _FILE))


def _parsed(text: str, name: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{name} is '{text}'; it must be a date, YYYY-MM-DD") from None
