"""One fit of a round: an ordinary run of ``nemo-rpo train``, with the round's policies, beliefs and data."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_rpo.config.from_mapping import read_yaml
from nemo_rpo.config.load import load_config, print_on_first_rank
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.ranks import check_run
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.files.stage import fingerprint
from nemo_rpo.errors import ConfigError, TrainingError
from nemo_rpo.rounds.believing import ANNOTATORS
from nemo_rpo.rounds.policies import Policies, fit_folder, round_folder, runs_here
from nemo_rpo.rounds.recipes import FitSettings
from nemo_rpo.rounds.rounds_settings import Plan

_OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the ranks of a fit are others


@dataclass(frozen=True)
class Fit:
    """A fit that is to be made.

    Attributes:
        plan: of the loop. number: the round, from 1. place: of the fit in the round, from 1.
        train, validation: its data. inputs: the fingerprint of what these were made of.
    """

    plan: Plan
    number: int
    place: int
    train: Path
    validation: Path
    inputs: str

    @property
    def folder(self) -> Path:
        """An ordinary run's."""
        return fit_folder(self.plan.folder, self.number, self.place)

    @property
    def settings(self) -> FitSettings:
        """Of this fit."""
        return self.plan.fits[self.place - 1]


def run_fit(fit: Fit) -> int:
    """Trains, from the fit's own last checkpoint where there is one; nothing where its export is there already.
    Returns 0, or 75 where it has saved and stopped.

    Raises:
        ConfigError: what is in its folder was made of other inputs. TrainingError: it has failed.
    """
    name = name_of(fit)
    found = _found(fit.folder)
    if found is not None and found != name:
        raise ConfigError(
            f"{fit.folder} was trained with other settings or data; set them back, or delete it to train anew"
        )
    if found is not None and (fit.folder / "hf" / "config.json").is_file():
        return 0
    _drop_what_no_checkpoint_holds(fit.folder)
    overrides = [*_overrides(fit), f"exp_manager.name={name}"]
    train = fit.plan.online.train
    cfg = load_config(train.config, overrides, notify=lambda text: None)
    if train.launch is None and runs_here(cfg):
        check_run(cfg, 1)
        from nemo_rpo.training.run import train as train_here

        return train_here(cfg)
    launch = train.launch or f"{shlex.quote(sys.executable)} -m nemo_rpo.cli {{train}}"
    status = _launched(_words(launch, ["train", "--config-name", train.config, "--", *overrides]), fit)
    if not status and not (fit.folder / "hf" / "config.json").is_file():
        raise TrainingError(
            f"online.train.launch ended with status 0 before {fit.folder / 'hf'} was there: it must wait for the end "
            "of the run (sbatch --wait), on a file system that this machine shares"
        )
    return status


def check_fit(plan: Plan, place: int) -> None:
    """Refuses, before anything is sampled, settings that the fit could not be started with. Raises ConfigError."""
    nothing = Path("unknown")
    fit = Fit(plan, 1, place, nothing, nothing, "")
    cfg = load_config(plan.online.train.config, _overrides(fit), notify=lambda text: None)
    base_loss(cfg.model)
    if plan.online.train.launch is None and runs_here(cfg):
        check_run(cfg, 1)


def distance(folder: Path) -> tuple[float, float]:
    """KL to the start that a fit's last validation measured, nats a response, and its standard error; nan: none."""
    rows = [row for row in _metrics(folder) if row.get("split") == "val" and "kl_to_start" in row]
    return (rows[-1]["kl_to_start"], rows[-1]["kl_to_start_error"]) if rows else (math.nan, math.nan)


def accuracy(folder: Path) -> float:
    """Of a fit's last validation: how often it prefers what the judges (or gold labels) do; nan: none."""
    rows = [row for row in _metrics(folder) if row.get("split") == "val" and "acc" in row]
    return rows[-1]["acc"] if rows else math.nan


def _metrics(folder: Path) -> list[dict]:
    from nemo_rpo.training.logs.metrics import METRICS_FILE, read_metrics

    return read_metrics(folder) if (folder / METRICS_FILE).exists() else []


def _drop_what_no_checkpoint_holds(folder: Path) -> None:
    """A fit that was killed before its first checkpoint begins anew; a run would keep the lines of before beside its
    own, and they are the same.
    """
    from nemo_rpo.training.logs.metrics import METRICS_FILE

    if not any((folder / "checkpoints").glob("step=*")):
        (folder / METRICS_FILE).unlink(missing_ok=True)


def _found(folder: Path) -> str | None:
    """The name in the settings of the run that is there."""
    path = folder / "config.yaml"
    return read_yaml(path).get("exp_manager", {}).get("name") if path.is_file() else None


def name_of(fit: Fit) -> str:
    """``exp_manager.name`` of the run, which holds the fingerprint of what it is made of."""
    cfg = asdict(
        load_config(
            fit.plan.online.train.config, fit.settings.over(fit.plan.online.train.overrides), notify=lambda text: None
        )
    )
    cfg["exp_manager"] = cfg["trainer"].pop("devices", None)  # names, loggers and time limits change no weight
    made_of = {
        "data": fit.inputs,
        "fit": asdict(fit.settings),
        "run": cfg,
        "carry": fit.plan.online.believe.carry,
        "frozen": fit.plan.online.pairs == "best_worst",
        "round": fit.number,
    }
    return f"round{fit.number:03d}-fit{fit.place}-{fingerprint(made_of)[:16]}"


def _overrides(fit: Fit) -> list[str]:
    plan, settings, policies = fit.plan, fit.settings, Policies(fit.plan)
    # A policy's own responses may be too long, or the same tokens twice; a run says how many it leaves out.
    given = ["model.data.invalid_pairs=drop", *settings.over(plan.online.train.overrides)]
    start, reference = (policies.of(name, fit.number) for name in (settings.start, settings.reference))
    base = reference if settings.base is None else policies.of(settings.base, fit.number)
    cfg = load_config(plan.online.train.config, given, notify=lambda text: None)
    needs = base_loss(cfg.model).needs
    given += [
        f"exp_manager.explicit_log_dir={fit.folder}",
        "exp_manager.version=null",
        "exp_manager.resume_if_exists=true",
        "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true",
        f"pretrained_checkpoint.restore_from_path={start}",
        f"model.data.data_prefix.train={fit.train}",
        f"model.data.data_prefix.validation={fit.validation}",
        "model.rpo.kl_to_start=true",
    ]
    if "reference" in needs and reference != start:
        given.append(f"model.rpo.reference_from={reference}")
    if "base_logps" in needs and base != (reference if "reference" in needs else start):
        given.append(f"model.rpo.previous_iterate={base}")
    if str(start) != plan.online.start:
        given.append(f"model.rpo.first_policy={plan.online.start}")
    if plan.online.stop.kl_to_start is not None:
        given.append(f"model.rpo.stop_kl={plan.online.stop.kl_to_start}")
    return given + _beliefs(fit, cfg)


def _beliefs(fit: Fit, cfg: RunConfig) -> list[str]:
    """Where annotators start: at what the last round's run knew, or frozen at what all judged pairs say."""
    if not cfg.model.rpo.enabled:
        return []
    if fit.plan.online.pairs == "best_worst":
        believed = round_folder(fit.plan.folder, fit.number) / ANNOTATORS
        return [f"model.rpo.believe_from={believed}", "model.rpo.freeze_eta=true"]
    carry = fit.plan.online.believe.carry
    if fit.number == 1 or not carry:
        return []
    before = fit_folder(fit.plan.folder, fit.number - 1, fit.place)
    return [f"model.rpo.believe_from={before}", f"model.rpo.carry={carry}"]


def _words(launch: str, arguments: list[str]) -> list[str]:
    found: list[str] = []
    for word in shlex.split(launch):
        found += arguments if word == "{train}" else [word]
    return found


def _launched(command: list[str], fit: Fit) -> int:
    """Runs the ranks of a fit to their end; signals that ask for one are passed on."""
    print_on_first_rank(f"$ {shlex.join(command)}")
    environment = {name: value for name, value in os.environ.items() if name not in _OWN}
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as exc:
        raise ConfigError(f"online.train.launch cannot be run ({command[0]}: {exc.strerror})") from exc
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        if number != signal.SIGINT:  # a terminal's Ctrl-C reaches it by itself
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status not in (0, 75) and not asked:
        raise TrainingError(
            f"round {fit.number}, fit {fit.place} ended with status {status}; its own last lines say why. The same "
            "command goes on from its last checkpoint"
        )
    return status
