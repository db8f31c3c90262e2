"""The loop: rounds of samples, pairs, verdicts, beliefs, fits and measurements, each done once.

There is no file of the loop's own state. A stage is done when its file is in its place, which it takes whole, with the
fingerprint of what it is made of; whoever starts again goes through all stages, reads what is done and does the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nemo_rpo.config.load import print_on_first_rank as say
from nemo_rpo.data.files.stage import fingerprint
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.pairs_file import pairs_of_samples, read_pairs, write_pairs
from nemo_rpo.rounds.against_opponent import believe_opponent
from nemo_rpo.rounds.believing import (
    SOFT_TRAIN,
    SOFT_VALIDATION,
    TRAIN,
    VALIDATION,
    RoundBelief,
    believe_round,
)
from nemo_rpo.rounds.draws import Prompts, anchors_of, of_round, prompts_of
from nemo_rpo.rounds.fitting import Fit, check_fit, name_of, run_fit
from nemo_rpo.rounds.measuring import Measured, measure, why_stop
from nemo_rpo.rounds.policies import Policies, round_folder
from nemo_rpo.rounds.report import write_loop_report, write_round_report
from nemo_rpo.rounds.rounds_settings import Plan


def iterate(plan: Plan) -> int:
    """Runs all rounds that are not done yet. Returns 0 at the end, 75 where a fit has saved and stopped before.

    Raises:
        ConfigError: settings that do not fit, or judges that a round must not be trained on. RPOError: whatever a
            stage cannot go on for; the same command goes on from there.
    """
    for place in range(1, len(plan.fits) + 1):
        check_fit(plan, place)
    prompts = prompts_of(plan.online.prompts, plan.online.seed)
    anchors = anchors_of(plan.online.anchors, plan.online.seed)
    _make(plan.folder)
    if not anchors:
        say("no online.anchors: nothing tells whether the judges are better than a coin (docs/loop.md)")
    measured: list[Measured] = []
    for number in range(1, plan.online.rounds + 1):
        found = _round(plan, number, prompts, of_round(anchors, number, plan.online.anchors.per_round))
        if isinstance(found, int):
            return found
        measured.append(found)
        write_loop_report(plan, measured)
        if reason := why_stop(measured, plan.online.stop):
            say(f"the loop ends after round {number}: {reason}")
            break
    say(f"{plan.folder / 'report.html'}: {len(measured)} of {plan.online.rounds} rounds")
    return 0


def _round(plan: Plan, number: int, prompts: Prompts, anchors: Sequence[JudgedPair]) -> Measured | int:
    """The measurement of the round, or the status of a fit that has stopped early."""
    folder = round_folder(plan.folder, number)
    _make(folder)
    trained = of_round(prompts.trained, number, plan.online.prompts.per_round)
    pairs = _pairs(plan, number, Prompts(trained, prompts.held_out))
    held_out = {prompt.key for prompt in prompts.held_out}
    belief = believe_round(plan, folder, pairs, held_out, anchors)
    _report_belief(number, belief, len(anchors))
    check_anchors(plan, number, belief)
    for place in range(1, len(plan.fits) + 1):
        settings = plan.fits[place - 1]
        files = (TRAIN, VALIDATION) if settings.labels == "votes" else (SOFT_TRAIN, SOFT_VALIDATION)
        train, validation = (folder / name for name in files)
        if settings.opponent != "self":
            opponent = Policies(plan).of(settings.opponent, number)
            every = (Prompts(trained, prompts.held_out), pairs, anchors)
            train, validation = believe_opponent(plan, folder / f"opponent={place}", opponent, number, *every, belief)
        data = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (train, validation)]
        fit = Fit(plan, number, place, train, validation, fingerprint({"round": belief.inputs, "data": data}))
        if status := run_fit(fit):
            return status
    measured = measure(plan, number, prompts.held_out, [*pairs, *anchors], belief.judged, name_of(fit))
    write_round_report(plan, measured, belief)
    kl = "" if measured.kl_to_start is None else f", {measured.kl_to_start:.3g} nats from the start"
    say(
        f"round {number}: wins {measured.win_rate:.3f} ({measured.low:.3f}–{measured.high:.3f}) against the start on "
        f"{measured.prompts:,} held-out prompts{kl}"
    )
    return measured


def check_anchors(plan: Plan, number: int, belief: RoundBelief) -> None:
    """Raises :class:`ConfigError` where what is believed does not hold on held-out anchors: nothing is trained."""
    found, least = belief.facts["anchors"], plan.online.anchors.min_accuracy
    if found is None or found["right"] >= least:
        return
    advice = (
        "look at judges.csv, leave judges out or mend their prompts, or give more anchors"
        if plan.online.anchors.evidence
        else "let the anchors be evidence of who is right (online.anchors.evidence=true), or leave judges out"
    )
    raise ConfigError(
        f"round {number}: the judges are right on {found['right']:.2f} ({found['low']:.2f}–{found['high']:.2f}) of "
        f"{found['anchors']} held-out anchors, below online.anchors.min_accuracy={least:g}; nothing is trained: "
        f"{advice}"
    )


def _pairs(plan: Plan, number: int, prompts: Prompts) -> list[JudgedPair]:
    """Samples of the last policy, and the pairs that they make, in ``pairs.parquet``."""
    folder, policies = round_folder(plan.folder, number), Policies(plan)
    every = [*prompts.trained, *prompts.held_out]
    out, samples = folder / "responses.parquet", plan.online.sample.samples
    found = policies.sampled(policies.of("last", number), every, out, samples, "round", number)
    say(f"round {number}: {found.as_text()}")
    which = "random" if plan.online.pairs == "random" else "all"
    kept = [[response.prompt, response.index, response.text] for response in found.kept]
    inputs = fingerprint({"which": which, "seed": plan.online.seed, "samples": kept})
    path = folder / "pairs.parquet"
    if path.exists():
        pairs, made_of = read_pairs(path)
        if made_of != inputs:
            raise ConfigError(f"{path} was made of other samples; delete {folder} to do the round again")
        return pairs
    texts = {prompt.key: (prompt.text, _json(prompt.fields)) for prompt in every}
    pairs = pairs_of_samples(texts, found.kept, which, plan.online.seed + number)
    if not any(pair.pair_id.rpartition(":")[0] not in {p.key for p in prompts.held_out} for pair in pairs):
        raise DataError(f"round {number}: no prompt has two different whole samples, so there is nothing to compare")
    write_pairs(path, pairs, inputs)
    return pairs


def _json(fields: dict) -> dict:
    """As they are once they have been in a file: a round that goes on must not differ from one that did not stop."""
    return json.loads(json.dumps(fields, default=str))


def _report_belief(number: int, belief: RoundBelief, anchors: int) -> None:
    facts = belief.facts
    say(f"round {number}: {facts['verdicts']:,} verdicts on {facts['pairs']:,} pairs and {anchors:,} anchors")
    for line in facts["switched_off"]:
        say(line)
    for warning in facts["warnings"]:
        say(f"warning: {warning['text']}")
    if anchors and facts["anchors"] is None:
        say(f"warning: {anchors} anchors are too few to tell how often the judges are right: give 20 to 80")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"{folder} cannot be made ({exc.strerror or exc}): set online.folder to another place"
        ) from exc
