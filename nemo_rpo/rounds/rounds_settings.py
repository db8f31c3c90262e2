"""The block ``online`` of a loop's YAML file, and the only place for its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from nemo_rpo.config.from_mapping import read_yaml, settings_of
from nemo_rpo.config.types import Count, Fraction, NonNegative, Positive, Range, WholeNumber, hints_of
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judging_settings import JudgeSettings, JudgingSettings, judges_of
from nemo_rpo.rounds.recipes import RECIPES, FitSettings, check_fits
from nemo_rpo.sampling.sampling_settings import SampleSettings

Share = Annotated[float, Range(0, 1)]


@dataclass
class PromptSettings:
    """``online.prompts``.

    Attributes:
        path: rows with ``prompt`` and maybe ``prompt_id``, one file or several.
        per_round: prompts of a round, in an order that the seed draws; those of the next round follow, from the
            beginning where all have been used. None: all.
        held_out: prompts that are never trained on: validation, and the policy against the start.
    """

    path: str | list[str] = ""
    per_round: Count | None = None
    held_out: Count = 500

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [Path(path) for path in ([self.path] if isinstance(self.path, str) else self.path)]


@dataclass
class RoundSampleSettings(SampleSettings):
    """``online.sample``: what ``nemo-rpo sample`` takes, and who samples.

    Attributes:
        sampler: ``openai``, a server; ``engine``: ranks of this package, without a server.
        overrides: further settings of the engine's layout, over ``online.train``'s.
        rows: samples that the engine draws side by side.
    """

    sampler: Literal["openai", "engine"] = "openai"
    overrides: list[str] = field(default_factory=list)
    rows: Count = 64

    def check(self, where: str = "sample") -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if self.sampler == "openai":
            return super().check(where)
        if self.urls or self.command or self.stop:
            raise ConfigError(f"{where}.sampler=engine asks no server: unset {where}.url, command and stop")
        if self.temperature == 0:
            raise ConfigError(f"{where}.temperature must be above 0: the samples of a prompt are to be compared")


@dataclass
class AnchorSettings:
    """``online.anchors``: pairs of known truth.

    Attributes:
        path: pairs in any layout with their ``gold`` label; None: there are none.
        per_round: of them, judged in each round by every judge; None: all.
        min_accuracy: share of held-out anchors that what is believed must get right; below, nothing is trained.
        evidence: they also say who is right, and are trained on. False: they are held out, all of them.
    """

    path: str | None = None
    per_round: Count | None = None
    min_accuracy: Share = 0.6
    evidence: bool = True


@dataclass
class BelieveSettings:
    """``online.believe``.

    Attributes:
        carry: of what the last round's run knew of each annotator, the share that counts (``model.rpo.carry``).
    """

    carry: Fraction = 0.5


@dataclass
class TrainSettings:
    """``online.train``.

    Attributes:
        config: a YAML file of ``nemo-rpo train``, by path or by name.
        overrides: settings over it, of all fits.
        recipe: a name of :data:`nemo_rpo.rounds.recipes.RECIPES`.
        fits: instead of a recipe, a mapping each (:class:`nemo_rpo.rounds.recipes.FitSettings`).
        launch: how a fit is started, with ``{train}`` where the arguments of ``nemo-rpo`` belong; None: on this
            machine, on as many ranks as the layout needs.
    """

    config: str = "gpt_rpo"
    overrides: list[str] = field(default_factory=list)
    recipe: str = "re_dpo"
    fits: list[dict] = field(default_factory=list)
    launch: str | None = None


@dataclass
class MeasureSettings:
    """``online.measure``: the policy against the start, on held-out prompts.

    Attributes:
        judges: who compares them, blocks as in ``online.judges``; empty: those, weighed by what is believed of them.
    """

    judges: list[dict] = field(default_factory=list)


@dataclass
class StopSettings:
    """``online.stop``: when there is no next round.

    Attributes:
        kl_to_start: nats a response from the start; the fit that measures more ends, and the loop with it.
        win_rate_drop: how far the win rate may fall below that of the best round.
    """

    kl_to_start: Positive | None = None
    win_rate_drop: NonNegative | None = 0.02


@dataclass
class OnlineSettings:
    """``online``.

    Attributes:
        folder: of the loop; made if it is not there.
        start: π₀, a Hugging Face folder.
        rounds: of the loop; raised, it goes on.
        seed: of prompts, samples, pairs, orders and anchors.
        pairs: ``random``: one pair a prompt; ``all``: of its samples; ``best_worst``: all are judged, and the sample
            that beats the others most often is trained on against the one that does least, reliabilities frozen.
        judges: blocks as ``nemo-rpo judge`` takes them.
        judges_a_pair, unparsed, trial: of :class:`nemo_rpo.judging.judging_settings.JudgingSettings`.
    """

    folder: str = ""
    start: str = ""
    rounds: Count = 3
    seed: WholeNumber = 0
    prompts: PromptSettings = field(default_factory=PromptSettings)
    sample: RoundSampleSettings = field(default_factory=RoundSampleSettings)
    pairs: Literal["random", "all", "best_worst"] = "random"
    judges: list[dict] = field(default_factory=list)
    judges_a_pair: Count | None = None
    unparsed: Share = JudgingSettings.unparsed
    trial: Count = JudgingSettings.trial
    anchors: AnchorSettings = field(default_factory=AnchorSettings)
    believe: BelieveSettings = field(default_factory=BelieveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    stop: StopSettings = field(default_factory=StopSettings)


@dataclass(frozen=True)
class Plan:
    """Settings that have been checked.

    Attributes:
        online: as they are. fits: of a round. judging: of all judges.
        judges, measuring: the blocks of the round's judges and of those who measure (the same where it names none).
    """

    online: OnlineSettings
    fits: list[FitSettings]
    judging: JudgingSettings
    judges: list[JudgeSettings]
    measuring: list[JudgeSettings]

    @property
    def folder(self) -> Path:
        """Of the loop."""
        return Path(self.online.folder)


_BLOCKS = {
    "prompts": PromptSettings,
    "sample": RoundSampleSettings,
    "anchors": AnchorSettings,
    "believe": BelieveSettings,
    "train": TrainSettings,
    "measure": MeasureSettings,
    "stop": StopSettings,
}


def read_plan(path: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The block ``online`` of a YAML file, with ``overrides`` (``{"rounds": 5, "train.recipe": "inpo"}``) over it.

    Files of judges (prompts, runs) are relative to the YAML file, other paths to the working folder.

    Raises:
        ConfigError: with one line that names the file or the setting.
    """
    tree = read_yaml(path)
    if set(tree) != {"online"}:
        raise ConfigError(f"{path} must hold one block, online; it has {', '.join(map(str, tree)) or 'nothing'}")
    return plan_of(tree["online"], path.parent, overrides)


def plan_of(values: Mapping[str, Any], folder: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """As :func:`read_plan`, of the block itself; files of judges are relative to ``folder``."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"online must be a mapping of settings; got {values!r}")
    values = {name: dict(of) if name in _BLOCKS and isinstance(of, Mapping) else of for name, of in values.items()}
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    blocks = {
        name: settings_of(cls, {} if values.get(name) is None else values[name], f"online.{name}")
        for name, cls in _BLOCKS.items()
    }
    plain = settings_of(
        OnlineSettings,
        {name: value for name, value in values.items() if name not in _BLOCKS},
        "online",
    )
    online = OnlineSettings(**{name: getattr(plain, name) for name in hints_of(OnlineSettings)} | blocks)
    return _checked(online, folder)


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    block, _, name = key.removeprefix("online.").rpartition(".")
    if block and block not in _BLOCKS:
        raise ConfigError(f"online has no block '{block}'; there are {', '.join(_BLOCKS)}")
    (values.setdefault(block, {}) if block else values)[name] = value


def _checked(online: OnlineSettings, folder: Path) -> Plan:
    for name, of in (("folder", online.folder), ("start", online.start), ("prompts.path", online.prompts.path)):
        if not of:
            raise ConfigError(f"online.{name} must be set")
    if not (Path(online.start) / "config.json").is_file():
        raise ConfigError(f"online.start must be a Hugging Face folder; there is no {online.start}/config.json")
    online.sample.check("online.sample")
    if online.sample.samples < 2:
        raise ConfigError("online.sample.samples must be at least 2: samples of a prompt are compared")
    if not online.judges:
        raise ConfigError("online.judges must list at least one judge")
    judges = judges_of(online.judges, folder, "online.judges")
    if online.judges_a_pair is not None and online.judges_a_pair > len(judges):
        raise ConfigError(f"online.judges_a_pair={online.judges_a_pair}, but there are {len(judges)} judges")
    measuring = judges_of(online.measure.judges, folder, "online.measure.judges") if online.measure.judges else judges
    if online.train.launch is not None and "{train}" not in online.train.launch.split():
        raise ConfigError("online.train.launch must have {train} as a word of its own: the arguments of nemo-rpo")
    if online.train.recipe not in RECIPES:
        raise ConfigError(f"online.train.recipe is '{online.train.recipe}'; there are {', '.join(RECIPES)}")
    blocks = online.train.fits
    fits = [settings_of(FitSettings, block, f"online.train.fits[{i}]") for i, block in enumerate(blocks)]
    fits = fits or RECIPES[online.train.recipe]
    check_fits(fits, online.pairs == "best_worst")
    judging = JudgingSettings([], online.seed, online.unparsed, online.trial, online.judges_a_pair)
    return Plan(online, fits, judging, judges, measuring)
