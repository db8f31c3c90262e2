"""Preference files and tables of games, damaged, and the commands that read them."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

from fuzzing.damage import damage_bytes, damage_value
from fuzzing.readers import Outcome, Target, command, refusing_and
from public_rows import EXAMPLES

from nemo_rpo.cli import COMMANDS
from nemo_rpo.conversion import WRITERS

GOOD = [{"role": "assistant", "content": "Because of scattering."}]
BAD = [{"role": "assistant", "content": "No idea."}]
ASKED = [{"role": "user", "content": "Why?"}]
OWN: dict[str, list[dict[str, Any]]] = {
    "hf": [{"prompt": f"q{i}?", "chosen": "x", "rejected": "y", "annotator": f"w{i % 2}"} for i in range(4)],
    "hf messages": [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "tools": [{"name": "f"}], "strength": 2}],
    "hf implicit": [{"chosen": ASKED + GOOD, "rejected": ASKED + BAD, "shown_first": "chosen", "gold": "rejected"}],
    "nemo_aligner": [{"prompt": "q", "chosen_response": "a", "rejected_response": "b", "margin": 0.5, "time": 17}],
    "nemo_rl": [{"context": ASKED, "completions": [{"rank": i, "completion": t} for i, t in enumerate((GOOD, BAD))]}],
    "rankings": [{"prompt": "q", "responses": ["a", "b", "c"], "rewards": [3, 2, 1], "annotator": "w"}],
    "votes": [
        {"pair_id": f"p{i}", "prompt": "q", "response_a": f"a{i}", "response_b": "b", "gold": "a", "topic": "law"}
        | {"votes": [{"annotator": f"w{k}", "vote": "ab"[k % 2], "seconds": 3, "shown_first": "b"} for k in range(3)]}
        for i in range(3)
    ],
    "multipref": [
        {"comparison_id": "c", "text": "q", "completion_a": "a", "completion_b": "b", "expert_worker_annotations": []}
        | {"normal_worker_annotations": [{"evaluator": "e", "overall_pref": "A-is-clearly-better", "time_spent": 4}]}
    ],
}
ROWS = OWN | {name: rows for name, (rows, _) in EXAMPLES.items()}
TO = list(WRITERS)


def damaged_rows(rng: random.Random, folder: Path) -> Path:
    """A file of some layout and format with damaged values, damaged bytes, or both."""
    name = rng.choice(list(ROWS))
    rows: list[Any] = [*ROWS[name], *rng.choices(ROWS[name], k=rng.randrange(3))]
    if rng.random() < 0.2:
        rows += rng.choices(ROWS[rng.choice(list(ROWS))], k=1)
    if rng.random() < 0.85:
        at = rng.randrange(len(rows))
        rows[at] = damage_value(rng, rows[at], rng.choice([1, 1, 2, 4]))
    kinds = [".jsonl", ".jsonl", ".jsonl.gz", ".json", ".parquet"]
    flat = all(isinstance(row, dict) and not any(isinstance(v, dict | list) for v in row.values()) for row in rows)
    path = folder / f"data{rng.choice([*kinds, '.csv', '.tsv', '.csv'] if flat else kinds)}"
    if not _write(path, rows) or rng.random() < 0.35:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return path


def _write(path: Path, rows: list[Any]) -> bool:
    """Writes the rows as well as the format can; False where it cannot hold them, and has a whole file instead."""
    lines = [json.dumps(row) for row in rows]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError, AttributeError, ValueError):
            parquet.write_table(pyarrow.Table.from_pylist(OWN["votes"]), path)
            return False
    elif path.suffix in (".csv", ".tsv"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(f"[{', '.join(lines)}]")
    else:
        text = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return True


def _keys(rng: random.Random) -> list[str]:
    some = [[], [], [], ["--annotator-key", "worker"], ["--layout", rng.choice(list(ROWS)).split()[0]]]
    return rng.choice([*some, ["--columns", "annotator=id,prompt=text"], ["--columns", "vote=answer.x"]])


def _validate(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    argv = ["validate", str(damaged_rows(rng, folder)), *_keys(rng), *rng.choice([[], ["--strict"], ["--json"]])]
    if rng.random() < 0.3:
        argv += ["--tokenizer", str(prepared / "tokenizer"), "--seq-length", "64"]
    return command(argv, (0, 1, 2))


def _fix(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    out = folder / f"fixed{rng.choice(['.jsonl', '.parquet', '.json'])}"
    return command(["validate", str(damaged_rows(rng, folder)), *_keys(rng), "--fix", str(out)], (0, 1, 2), out)


def _convert(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    out = folder / f"out{rng.choice(['.jsonl', '.jsonl.gz', '.json', '.parquet', '.csv'])}"
    argv = ["convert", str(damaged_rows(rng, folder)), "--to", rng.choice(TO), "--out", str(out), *_keys(rng)]
    return command(argv, (0, 2), out)


def _annotators(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    return command(["annotators", str(damaged_rows(rng, folder)), *_keys(rng)], (0, 1, 2))


def _rank(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    rows = [
        {"model_a": a, "model_b": b, "winner": rng.choice(["a", "b", "tie", a]), "annotator": f"w{i % 3}"}
        for i, (a, b) in enumerate([("x", "y"), ("y", "z"), ("z", "x"), ("x", "y")] * 3)
    ]
    at = rng.randrange(len(rows))
    rows[at] = damage_value(rng, rows[at], rng.choice([1, 2]))
    path = folder / rng.choice(["games.jsonl", "games.json", "games.parquet"])
    if not _write(path, rows) or rng.random() < 0.3:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return command(["rank", str(path), "--bootstrap", "3", *rng.choice([[], [], ["--crowd-bt"]])], (0, 2))


def _tokens(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    """What training reads before its first step: the token cache of the rows, whole or not at all."""
    from nemo_rpo.data.cache.build import open_cache
    from nemo_rpo.data.cache.spec import CacheSpec
    from nemo_rpo.data.data_settings import RowFormat
    from nemo_rpo.data.tokenizers.spec import TokenizerSpec

    path, cache_dir = damaged_rows(rng, folder), folder / "cache"

    def build() -> None:
        tokenizer = TokenizerSpec(str(prepared / "tokenizer"), rng.random() < 0.5)
        invalid = rng.choice(["error", "drop"])
        spec = CacheSpec([path], RowFormat(), tokenizer, 64, rng.random() < 0.5, invalid, rng.random() < 0.3)
        cache = open_cache(spec, cache_dir, num_workers=1)
        for i in range(len(cache)):
            cache.pair(i)

    return refusing_and(build, lambda: [path for path in cache_dir.glob("*") if ".tmp-" in path.name])


DATA = {
    "validate": Target(_validate, 8),
    "validate --fix": Target(_fix, 4),
    "convert": Target(_convert, 10),
    "rank": Target(_rank, 3),
    "training's tokens": Target(_tokens, 6),
    **({"annotators": Target(_annotators, 4)} if "annotators" in COMMANDS else {}),
}
