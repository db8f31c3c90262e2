"""What a run leaves and starts from, damaged: its records, scores, reference and token cache, and its YAML file."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path

import numpy as np
from fuzzing.damage import NASTY
from fuzzing.readers import Outcome, Target, command, damaged_copy, refusing
from runs import make_run

from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.evaluation import scores as evaluation_scores
from nemo_rpo.training.reference import file as reference

_TEXT = "which answer is the better one, and who says so? a tie says nothing; a vote says a little."
_MADE_WITH = reference.MadeWith({"weights": "w", "precision": "32"}, {"tokenizer": "t"})
_LINES = ["<<: *x", "a: &x [*x]", "${oops}", "model: null", "- 1", "\tx: 1", "model: 3", "# nothing"]
_YAML = """
trainer: {devices: 1, dpo: {max_epochs: 1, val_check_interval: 0.5}}
exp_manager: {name: x, explicit_log_dir: results}
model:
  micro_batch_size: 2
  global_batch_size: 8
  encoder_seq_length: 64
  optim: {name: distributed_fused_adam, lr: 1e-5, sched: {name: CosineAnnealing, warmup_steps: 3}}
  data:
    data_prefix: {train: [train.jsonl], validation: {a: [v.jsonl], b: w.jsonl}}
    columns: {annotator: WorkerId}
  rpo: {base_loss: dpo, sweep: end, eta_init: 0.9}
"""


def make_runs(folder: Path) -> None:
    """A run with its data, a tokenizer, a token cache with a reference, scores."""
    make_run(folder / "run", [0.95, 0.8, 0.6, 0.3], pairs=40)
    _make_tokenizer(folder / "tokenizer")
    data = folder / "pairs.jsonl"
    data.write_text("".join(f'{{"prompt": "{_TEXT}", "chosen": "a{i}", "rejected": "b"}}\n' for i in range(6)))
    spec = CacheSpec([data], RowFormat(), TokenizerSpec(str(folder / "tokenizer"), False), 64, True, "error")
    cache = open_cache(spec, folder / "caches", num_workers=1)
    (built,) = (path for path in (folder / "caches").iterdir() if path.is_dir())
    shutil.copytree(built, folder / "cache")
    values = np.arange(len(cache), dtype=np.float32)
    reference.write(folder / "reference.parquet", reference.Logprobs(-values, -values), cache, _MADE_WITH)
    evaluation_scores.write_scores(evaluation_scores.scores_of(cache, values), folder / "scores.parquet")


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    fast.save_pretrained(folder)


def _run_of(rng: random.Random, folder: Path, prepared: Path) -> Path:
    shutil.copy(prepared / "run.train.jsonl", folder)
    return damaged_copy(rng, prepared / "run", folder)


def _report(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    run = _run_of(rng, folder, prepared)
    (folder / "out").mkdir()
    return command(["report", str(run), "--out", str(folder / "out" / "page")], (0, 2))


def _export(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    run, what = _run_of(rng, folder, prepared), rng.choice(["doubtful", "data", "annotators"])
    out = folder / ("out.jsonl" if what == "data" else "out.csv")
    data = ["--data", str(folder / "run.train.jsonl")] if what != "annotators" else []
    return command(["export", str(run), what, "--out", str(out), *data], (0, 2), out)


def _reference(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    path = damaged_copy(rng, prepared / "reference.parquet", folder)
    return refusing(lambda: reference.read(path, PreferenceCache(prepared / "cache"), _MADE_WITH))


def _scores(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    path = damaged_copy(rng, prepared / "scores.parquet", folder)
    return refusing(lambda: evaluation_scores.read_scores(path))


def _cache(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    path = damaged_copy(rng, prepared / "cache", folder)

    def read() -> None:
        cache = PreferenceCache(path)
        if rng.random() < 0.7:  # a rank that has its share of the digests only, reads the rest unchecked
            cache.check()
        for i in range(len(cache)):
            cache.pair(i)
            cache.votes(i)
            cache.where(i)

    return refusing(read)


def _yaml(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    path, text = folder / "config.yaml", _YAML
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 4])):
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        kind = rng.randrange(4)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines[at] = lines[at].partition(":")[0] + f": {rng.choice(NASTY)!r}"
        elif kind == 2:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + rng.choice(string.punctuation + " \t1x") + lines[at][place + 1 :]
        else:
            lines.insert(
                at, rng.choice(["<<: *x", "a: &x [*x]", "${oops}", "model: null", "- 1", "\tx: 1", "model: 3"])
            )
        text = "\n".join(lines)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")

    def load() -> None:
        validate_config(load_config(str(path), [], notify=lambda said: None))

    return refusing(load)


RUNS = {
    "report": Target(_report, 0.5),
    "export": Target(_export, 3),
    "reference": Target(_reference, 2),
    "scores": Target(_scores, 2),
    "token cache": Target(_cache, 4),
    "YAML": Target(_yaml, 4),
}
