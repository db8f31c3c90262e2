"""Folders that Hugging Face ``datasets`` writes with ``save_to_disk``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.arrow import plain_rows
from nemo_rpo.errors import DataError, first_line, missing_extra


def check(folder: Path) -> None:
    """Raises :class:`DataError` unless ``folder`` is one saved data set; names the splits of a saved dictionary."""
    if (folder / "state.json").is_file():
        return
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(str(state.parent) for state in folder.glob("*/state.json"))
        raise DataError(f"{folder} holds several splits; name one: {', '.join(splits) or 'none is complete'}")
    raise DataError(f"{folder} is no saved Hugging Face data set (no state.json); name the data files in it")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows in order, a batch in memory at a time."""
    datasets = _datasets()
    try:
        for batch in datasets.load_from_disk(str(folder)).with_format("arrow").iter(256):
            yield from plain_rows(batch)
    except DataError:
        raise
    except Exception as exc:  # datasets lets through whatever the damaged file led it to
        raise DataError(f"{folder} cannot be read as a saved data set ({first_line(exc)})") from exc


def write(parquet: Path, folder: Path) -> None:
    """Turns a Parquet file into a saved data set; ``folder`` must not exist."""
    datasets = _datasets()
    with _quiet(datasets):
        cache = str(folder.with_name(f"{folder.name}.arrow"))
        datasets.Dataset.from_parquet(str(parquet), cache_dir=cache).save_to_disk(str(folder))


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as exc:
        raise missing_extra("datasets", "data") from exc
    return datasets
