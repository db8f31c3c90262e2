"""What a token cache says of its pairs as Arrow arrays: sliced from its files, never looped over in Python.

A million pairs cost a tenth of a second, where a loop that decodes each id takes six.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.errors import missing_extra


def pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module; :class:`MissingExtraError` without them."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as exc:
        raise missing_extra("pyarrow", "mcore") from exc
    return pyarrow, pyarrow.parquet


def pair_ids(cache: PreferenceCache, pairs: np.ndarray | None = None) -> Any:
    """Strings: the ids of ``pairs`` int64 [p], or of all in their order."""
    pa, _ = pyarrow()
    text, start = cache.all_pair_ids()
    whole = pa.LargeStringArray.from_buffers(len(cache), pa.py_buffer(start), pa.py_buffer(text))
    return (whole if pairs is None else whole.take(pa.array(pairs))).cast(pa.string())


def sources(cache: PreferenceCache, pairs: np.ndarray) -> Any:
    """Strings: ``file:row`` of the first row that speaks of each of ``pairs`` int64 [p]."""
    pa, _ = pyarrow()
    file, row = cache.all_sources()[pairs].T
    files = pa.array(cache.files, pa.string()).take(pa.array(file))
    return pa.compute.binary_join_element_wise(files, pa.array(row).cast(pa.string()), ":")


def prompt_names(cache: PreferenceCache) -> np.ndarray:
    """A name for the tokens of each pair's prompt, [n]; a prompt that the cache holds once is hashed once."""
    tokens, begins = cache.all_prompts()
    places = np.stack((begins, cache.lengths[:, 0]), 1)
    distinct, place = np.unique(places, axis=0, return_inverse=True)
    names = [_name(tokens[start : start + length]) for start, length in distinct.tolist()]
    return np.array(names, dtype=object)[place.reshape(-1)]


def _name(ids: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).hexdigest()


def content_hashes(cache: PreferenceCache) -> Any:
    """16 bytes a pair."""
    pa, _ = pyarrow()
    data = pa.py_buffer(np.ascontiguousarray(cache.content_hash))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(cache), [None, data])


def lists(values: np.ndarray, ends: np.ndarray, which: slice) -> Any:
    """The flat ``values`` as lists of float32, cut at ``ends`` int64 [m]; only the lists that ``which`` selects."""
    pa, _ = pyarrow()
    offsets = pa.array(np.concatenate(([0], ends)))
    pieces = pa.LargeListArray.from_arrays(offsets, pa.array(values, pa.float32()))
    return pieces.take(pa.array(np.arange(len(ends))[which])).cast(pa.list_(pa.float32()))
