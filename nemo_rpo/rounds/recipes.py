"""What is trained in a round: one fit or several, each with its own start, reference and base.

Policies are named by when they were there:

========== ============================================================================================
``first``  π₀, which the loop began with
``last``   π_t, which the round's samples are from: what the last fit of the last round made
``last/1`` what fit 1 of the last round made; in the first round π₀
``this/1`` what fit 1 of this round made
========== ============================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nemo_rpo.errors import ConfigError

_POLICY = re.compile(r"first|last|(last|this)/([1-9]\d*)")


@dataclass
class FitSettings:
    """One training run of a round.

    Attributes:
        start: the policy that it begins with.
        reference: that of the loss.
        base: π_t of losses that compare with one (``model.rpo.previous_iterate``); None: the reference.
        loss: ``model.rpo.base_loss``; None: that of ``online.train``.
        labels: ``votes``: all of them, which the EM believes as far as it does. ``believed``: one row a pair, the
            likelier response first, with the columns that soft losses take (win rates, scores, margin) and without an
            EM on top.
        opponent: of ``believed``, whom win rates are against. ``self``: the round's own samples; ``this/1``: samples of
            what fit 1 made, which the judges compare with them.
        settings: of this fit, over ``online.train.overrides``.
    """

    start: str = "last"
    reference: str = "last"
    base: str | None = None
    loss: str | None = None
    labels: Literal["votes", "believed"] = "votes"
    opponent: str = "self"
    settings: list[str] = field(default_factory=list)

    def over(self, given: Sequence[str]) -> list[str]:
        """``given`` overrides of all fits with those of this one: its loss, whose options may be among them, first."""
        loss = [] if self.loss is None else [f"model.rpo.base_loss={self.loss}"]
        without_em = ["model.rpo.enabled=false"] if self.labels == "believed" else []
        return [*loss, *given, *self.settings, *without_em]


# The margins of these losses are of the order of 1/β² nats: the E-step needs a temperature. The buffer fits its own
# from there.
_WARM = ["model.rpo.objective=weighted", "model.rpo.link_tau=2"]

RECIPES: dict[str, list[FitSettings]] = {
    # Iterated DPO, or any loss of online.train, under the EM.
    "re_dpo": [FitSettings()],
    # The same on the share of votes, every label taken at its word.
    "dpo": [FitSettings(settings=["model.rpo.enabled=false"])],
    # Guo et al. (2402.04792): the reference stays where the loop began.
    "online_dpo": [FitSettings(reference="first", settings=["model.rpo.enabled=false"])],
    "re_online_dpo": [FitSettings(reference="first")],
    # Wu et al. (2405.00675).
    "sppo": [FitSettings(loss="sppo", labels="believed")],
    "re_sppo": [FitSettings(loss="sppo_hard", settings=_WARM)],
    # Rosset et al. (2404.03715).
    "dno": [FitSettings(loss="dno", labels="believed")],
    # Zhang et al. (2410.02197).
    "gpo": [FitSettings(loss="gpo", labels="believed")],
    # Zhang et al. (2407.00617). A start behind its base has first margins that run against what the base has learnt.
    "inpo": [FitSettings(reference="first", base="last", loss="inpo", settings=_WARM)],
    # Zhang et al. (2502.16852): both fits on pairs of π_t.
    "onpo": [
        FitSettings(start="last/1", reference="last/1", loss="onpo"),
        FitSettings(start="this/1", reference="this/1", loss="onpo"),
    ],
    # Zhou et al. (2503.08942): the extragradient step begins where the look-ahead did.
    "egpo": [
        FitSettings(loss="egpo", labels="believed"),
        FitSettings(loss="egpo", labels="believed", opponent="this/1"),
    ],
}


def check_fits(fits: Sequence[FitSettings], frozen: bool) -> None:
    """Raises :class:`ConfigError` for policies that there are none of when a fit needs them."""
    for i, fit in enumerate(fits):
        where = f"online.train.fits[{i}]"
        for name in ("start", "reference", "base"):
            value = getattr(fit, name)
            if value is None and name == "base":
                continue
            found = _POLICY.fullmatch(value)
            if not found:
                raise ConfigError(f"{where}.{name} is '{value}'; it can be first, last, last/N or this/N")
            if found[2]:
                _check_number(f"{where}.{name}", value, int(found[2]), i if found[1] == "this" else len(fits))
        if fit.opponent != "self":
            found = _POLICY.fullmatch(fit.opponent)
            if not found or found[1] != "this" or fit.labels != "believed":
                raise ConfigError(
                    f"{where}.opponent is '{fit.opponent}'; it can be self or, of believed labels, this/N"
                )
            _check_number(f"{where}.opponent", fit.opponent, int(found[2]), i)
        if frozen and fit.opponent != "self":
            raise ConfigError(f"{where}.opponent={fit.opponent} goes with online.pairs random or all")


def _check_number(where: str, value: str, number: int, fits: int) -> None:
    if number > fits:
        raise ConfigError(f"{where} is '{value}', but no such fit is done by then")
