"""What a run is made from, told apart by fingerprints: its data and its starting weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.cache.store import PreferenceCache

NOTHING = hashlib.sha256().hexdigest()  # the fingerprint of what is not set
# Spread over each file: fine-tuned copies of a model often share its beginning, the header and frozen embeddings.
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def origin_of(cfg: RunConfig, cache: PreferenceCache, believed: str | None) -> dict[str, str]:
    """What a run is made from, as fingerprints that a resumed run must share: its data, its starting weights, those
    of a reference of its own, those of the previous iterate, those of the adapter that it starts from, and
    ``believed``, that of what its annotators were believed to be.
    """
    return {
        "data": cache.fingerprint(),
        "weights": weights_fingerprint(cfg.pretrained_checkpoint.restore_from_path),
        "reference_from": weights_fingerprint(cfg.model.rpo.reference_from),
        "previous_iterate": weights_fingerprint(cfg.model.rpo.previous_iterate),
        "adapter": weights_fingerprint(cfg.model.peft.restore_from_path),
        "believe_from": believed or NOTHING,
    }


def reference_path(cfg: RunConfig) -> str | None:
    """Where the reference's weights, or adapters, are: ``model.rpo.reference_from``, else where the policy starts."""
    start = cfg.model.peft.restore_from_path or cfg.pretrained_checkpoint.restore_from_path
    return cfg.model.rpo.reference_from or start


def starts_at(cfg: RunConfig, path: str | None) -> bool:
    """Whether the policy starts from the weights in ``path``; None is the start. Other files of equal weights, such as
    a checkpoint and its export, are taken for other weights.
    """
    start = cfg.model.peft.restore_from_path or cfg.pretrained_checkpoint.restore_from_path
    return path in (None, start) or weights_fingerprint(path) == weights_fingerprint(start)


def weights_fingerprint(path: str | None) -> str:
    """Tells weights apart without reading them whole: names and sizes of the files under ``path`` (or of that file, a
    ``.nemo``), and of each 64 samples of 64 KiB at equal distances (files up to 4 MiB whole).
    """
    digest = hashlib.sha256()
    for file in _weight_files(Path(path)) if path else []:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}".encode())
        with file.open("rb") as opened:
            for start in range(0, size, max(_SAMPLE_BYTES, -(-size // _SAMPLES))):
                opened.seek(start)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # The blocks of zarr, in folders of an unpacked .nemo, have numbers for names.
    suffixes = (".safetensors", ".bin", ".distcp", ".ckpt", ".json", ".yaml")
    return [f for f in sorted(path.rglob("*")) if f.suffix in suffixes or f.name.replace(".", "").isdecimal()]
