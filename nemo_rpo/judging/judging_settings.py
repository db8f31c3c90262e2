"""The judges of a crowd of them, and the only place for their defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from nemo_rpo.config.from_mapping import read_yaml, settings_of
from nemo_rpo.config.types import Count, NonNegative, Range, WholeNumber
from nemo_rpo.crowd.factors.answer_features import FEATURES, check_features
from nemo_rpo.data.files.read import is_file
from nemo_rpo.errors import ConfigError, first_line
from nemo_rpo.judging.rewards import GOOD_ENOUGH
from nemo_rpo.serving.serving_settings import ServerSettings

Share = Annotated[float, Range(0, 1)]
_CALL = re.compile(r"[\w.]+:\w+")


@dataclass
class ChatJudge(ServerSettings):
    """A language model that is shown two responses.

    Attributes:
        name: of the annotator in the votes.
        kind: of the judge.
        family: what it is built on; judges of one family err together.
        prompt: a Jinja file that is given ``prompt``, ``first``, ``second`` and ``words``; None: one of the package's.
        system: text of a system message.
        orders: ``one``: drawn at random for every pair, and recorded. ``both``: each pair is shown twice; the same
            answer is one vote, a flip is a tie.
        verdict: ``parse`` reads the last match of ``pattern`` in the answer; ``choice`` has the server (vLLM's
            structured outputs) allow the three words only; ``logprobs`` reads the probabilities of the first token.
        words: what the judge calls the first response, the second one, and a tie.
        pattern: a regular expression whose first group is one of the words; None: ``[[word]]``.
        temperature, max_tokens: of the answer.
    """

    name: str = ""
    kind: Literal["chat"] = "chat"
    family: str | None = None
    prompt: str | None = None
    system: str | None = None
    orders: Literal["one", "both"] = "one"
    verdict: Literal["parse", "choice", "logprobs"] = "parse"
    words: dict[str, str] = field(default_factory=lambda: {"first": "A", "second": "B", "tie": "tie"})
    pattern: str | None = None
    temperature: NonNegative = 0.0
    max_tokens: Count = 1024

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        self.check_server(where)
        if self.is_transformers and self.verdict != "parse":
            raise ConfigError(
                f"{where}.verdict: transformers serve knows neither structured outputs nor log-probs: set it to parse"
            )
        if set(self.words) != {"first", "second", "tie"} or len(set(self.words.values())) != 3:
            raise ConfigError(f"{where}.words must say three different words, for first, second and tie")
        if self.prompt and not is_file(Path(self.prompt)):
            raise ConfigError(f"{where}.prompt: there is no file {self.prompt}")
        try:
            groups = re.compile(self.pattern or "()").groups
        except re.error as exc:
            raise ConfigError(f"{where}.pattern is no regular expression ({first_line(exc)})") from exc
        if not groups:
            raise ConfigError(f"{where}.pattern needs a group (…) around the word that is the verdict")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on, but for the prompt's text."""
        named = "name orders verdict words pattern temperature max_tokens system model extra".split()
        return {name: getattr(self, name) for name in named}


@dataclass
class RewardJudge:
    """A reward or preference model of this package: says which response it scores higher, p = σ(Δ).

    Attributes:
        name, kind, family: as of a chat judge.
        run: a run's folder, one of its checkpoints, or an exported folder.
        config: settings of the run, where the folder has none.
        overrides: of these settings: ``trainer.accelerator=cpu``.
        nproc_per_node: ranks to start; None: as many as the settings need.
        tie: |Δ| at or below which it is a tie.
    """

    name: str = ""
    kind: Literal["reward"] = "reward"
    family: str | None = None
    run: str = ""
    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    nproc_per_node: Count | None = None
    tie: NonNegative = 0.0

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if not self.run or not Path(self.run).exists():
            raise ConfigError(f"{where}.run must be the folder of a reward model; there is no '{self.run}'")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        named = "name run config overrides tie".split()
        return {name: getattr(self, name) for name in named}


@dataclass
class GenerativeJudge:
    """A language model run by the engine: p = π(first)/(π(first) + π(second)) of its two verdicts, which stand behind
    the prompt as responses do in training.

    Attributes:
        name, kind, family: as of a chat judge.
        run: a run's folder, one of its checkpoints, an exported folder, or any Hugging Face folder.
        prompt, system: as of a chat judge.
        orders: as of a chat judge.
        words: what it calls the first and the second response.
        config, overrides, nproc_per_node: as of a reward model.
    """

    name: str = ""
    kind: Literal["generative"] = "generative"
    family: str | None = None
    run: str = ""
    prompt: str | None = None
    system: str | None = None
    orders: Literal["one", "both"] = "one"
    words: dict[str, str] = field(default_factory=lambda: {"first": "A", "second": "B"})
    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    nproc_per_node: Count | None = None

    @property
    def verdict(self) -> str:
        """As of a chat judge: the two words are all that it may say."""
        return "logprobs"

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if not self.run or not Path(self.run).exists():
            raise ConfigError(f"{where}.run must be the folder of a language model; there is no '{self.run}'")
        if set(self.words) != {"first", "second"} or len(set(self.words.values())) != 2:
            raise ConfigError(f"{where}.words must say two different words, for first and second")
        if self.prompt and not is_file(Path(self.prompt)):
            raise ConfigError(f"{where}.prompt: there is no file {self.prompt}")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on, but for the prompt's text."""
        named = "name run system orders words config overrides".split()
        return {name: getattr(self, name) for name in named}


@dataclass
class ProgramJudge:
    """A function of Python that scores a response, or compares two.

    Attributes:
        name, kind, family: as of a chat judge.
        call: ``module:function``. Ready ones: ``nemo_rpo.judging.programs.answers:matches`` (a regular expression) and
            ``…:exact_answer``, ``nemo_rpo.judging.programs.unit_tests:pass_rate``.
        of: ``response``: ``function(prompt, response, fields, **arguments)`` is a score, higher is better, or None;
            ``pair``: ``function(prompt, first, second, fields, **arguments)`` is ``first``, ``second``, ``tie``, None,
            or the probability that the first is better. ``fields`` is the pair's row.
        orders: of ``pair``.
        arguments: by name.
        rule: of scores. ``difference``: the higher one wins, by more than ``margin``. ``pass_rate`` (AceCoder's): it
            must also be at least ``best``, by at least ``gap``, and the lower one above 0; else a tie.
        margin, best, gap: see there.
        at_once: responses scored side by side; more than one only helps where the function waits.
    """

    name: str = ""
    kind: Literal["program"] = "program"
    family: str | None = None
    call: str = ""
    of: Literal["response", "pair"] = "response"
    orders: Literal["one", "both"] = "one"
    arguments: dict[str, Any] = field(default_factory=dict)
    rule: Literal["difference", "pass_rate"] = "difference"
    margin: NonNegative = 0.0
    best: Share = 0.8
    gap: Share = 0.4
    at_once: Count = 1

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if not _CALL.fullmatch(self.call):
            raise ConfigError(f"{where}.call must be module:function; got '{self.call}'")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        named = "name call of orders arguments rule margin best gap".split()
        return {name: getattr(self, name) for name in named}


@dataclass
class CombinedJudge:
    """Several rewards of each response as one (:mod:`nemo_rpo.judging.rewards`).

    Attributes:
        name, kind, family: as of a chat judge.
        rewards: each ``{call, arguments}``, as of a program that scores responses, or ``{run, overrides}``, a reward
            model of this package.
        combine: ``all_good``: Σ log σ(r - r_ref), the log-probability that every reward finds the response good
            enough. ``harmonic``: the harmonic mean of rewards above 0, with ``weights``.
        quantile: r_ref is this quantile of the rewards of the prompt's responses (of all prompts' where it has fewer
            than four).
        weights: of the rewards, adding up to 1; empty: equal ones.
        margin: difference at or below which it is a tie.
    """

    name: str = ""
    kind: Literal["combined"] = "combined"
    family: str | None = None
    rewards: list[dict] = field(default_factory=list)
    combine: Literal["all_good", "harmonic"] = "all_good"
    quantile: Share = GOOD_ENOUGH
    weights: list[float] = field(default_factory=list)
    margin: NonNegative = 0.0

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if len(self.rewards) < 2:
            raise ConfigError(f"{where}.rewards must list two rewards or more")
        for i, block in enumerate(self.rewards):
            by_call = block.keys() <= {"call", "arguments"} and _CALL.fullmatch(str(block.get("call", "")))
            by_run = block.keys() <= {"run", "overrides"} and Path(str(block.get("run", ""))).is_dir()
            if not (by_call or by_run):
                kinds = "{call: module:function, arguments: {…}} or {run: FOLDER, overrides: […]}"
                raise ConfigError(f"{where}.rewards[{i}] must be {kinds}, of a folder that exists")
        self.weights = self.weights or [1 / len(self.rewards)] * len(self.rewards)
        if len(self.weights) != len(self.rewards) or min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ConfigError(f"{where}.weights must be one a reward, 0 or more, and add up to 1")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        named = "name rewards combine quantile weights margin".split()
        return {name: getattr(self, name) for name in named}


@dataclass
class SurrogateJudge:
    """Cheap properties of answers that stand in for an expensive judge, fitted to a few pairs that it has judged.

    Attributes:
        name, kind, family: as of a chat judge.
        judged: a file of judged pairs, in any layout, whose labels are learnt from (shares, where a pair has several).
        by: the annotator in that file whose labels count; None: everybody's.
        features: of answers (:data:`nemo_rpo.crowd.factors.answer_features.FEATURES`); empty: all.
        columns: further properties; ``grade`` is the fields ``grade_a`` and ``grade_b`` of a row.
        fewest: judged pairs below which nothing is fitted.
        tie: |log-odds| at or below which it is a tie.
    """

    name: str = ""
    kind: Literal["surrogate"] = "surrogate"
    family: str | None = None
    judged: str = ""
    by: str | None = None
    features: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    fewest: Count = 20
    tie: NonNegative = 0.0

    def check(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if not self.judged or not is_file(Path(self.judged)):
            raise ConfigError(f"{where}.judged must be a file of judged pairs; there is no '{self.judged}'")
        self.features = self.features or list(FEATURES)
        check_features(self.features, f"{where}.features")

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on, but for the judged pairs' content."""
        named = "name by features columns fewest tie".split()
        return {name: getattr(self, name) for name in named}


JudgeSettings = ChatJudge | RewardJudge | GenerativeJudge | ProgramJudge | CombinedJudge | SurrogateJudge
_KINDS = {
    "chat": ChatJudge,
    "reward": RewardJudge,
    "generative": GenerativeJudge,
    "program": ProgramJudge,
    "combined": CombinedJudge,
    "surrogate": SurrogateJudge,
}


@dataclass
class JudgingSettings:
    """Several judges, and when one of them is no use.

    Attributes:
        judges: a mapping each, by ``kind``.
        seed: of the orders drawn.
        unparsed: share of verdicts that could not be read, or got no answer, above which a judge is switched off.
        trial: verdicts after which that is looked at first.
        judges_a_pair: judges, drawn at random, who are asked about each pair; None: all of them.
    """

    judges: list[dict] = field(default_factory=list)
    seed: WholeNumber = 0
    unparsed: Share = 0.2
    trial: Count = 50
    judges_a_pair: Count | None = None

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if not self.judges:
            raise ConfigError("judges: must list at least one judge")


def read_judges(path: Path) -> tuple[JudgingSettings, list[JudgeSettings]]:
    """The settings of a YAML file ``judges: [{name, kind, …}, …]``; prompts are looked for beside it.

    Raises:
        ConfigError: with one line that names the file or the setting.
    """
    settings = settings_of(JudgingSettings, read_yaml(path), str(path))
    settings.check()
    return settings, judges_of(settings.judges, path.parent)


def judges_of(blocks: Sequence[Mapping[str, Any]], folder: Path, where: str = "judges") -> list[JudgeSettings]:
    """Blocks of settings, checked; files that they name are relative to ``folder``."""
    found: list[JudgeSettings] = []
    for i, block in enumerate(blocks):
        place = f"{where}[{i}]"
        kind = block.get("kind") if isinstance(block, Mapping) else None
        if kind not in _KINDS:
            raise ConfigError(f"{place}.kind must be one of {', '.join(_KINDS)}; got {kind!r}")
        judge = settings_of(_KINDS[kind], block, place)
        if not judge.name.strip():
            raise ConfigError(f"{place}.name must be set")
        if judge.name in (other.name for other in found):
            raise ConfigError(f"{place}.name: there are two judges '{judge.name}'")
        for name in ("prompt", "run", "config", "judged"):
            if given := getattr(judge, name, None):
                setattr(judge, name, str(folder / given))
        if isinstance(judge, CombinedJudge):
            judge.rewards = [
                {**one, **({"run": str(folder / one["run"])} if "run" in one else {})} for one in judge.rewards
            ]
        judge.check(place)
        found.append(judge)
    return found
