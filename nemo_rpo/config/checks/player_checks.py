"""What losses that rank models by the prompt ask of ``model.data.players``."""

from __future__ import annotations

from collections import Counter

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError


def check_players(cfg: RunConfig) -> None:
    """Raises :class:`ConfigError` where the loss and the list of models do not fit each other."""
    model, loss = cfg.model, base_loss(cfg.model)
    players = model.data.players
    if "coefficients" not in loss.needs:
        if players:
            raise ConfigError(
                f"model.data.players lists the models of battles, and the loss '{loss.name}' does not rank models: "
                "unset it, or set model.rpo.base_loss to p2l_bt, p2l_rao_kupper or p2l_bag"
            )
        return
    if len(players) < 2:
        raise ConfigError(
            f"the loss '{loss.name}' needs model.data.players, the names of the two or more models that the battles "
            "are between; nemo-rpo rank FILE shows those of a file"
        )
    blank = sum(not name.strip() for name in players)
    twice = [name for name, count in Counter(players).items() if count > 1]
    if blank or twice:
        wrong = f"'{twice[0]}' twice" if twice else "a blank name"
        raise ConfigError(f"model.data.players holds {wrong}: give each model one name")
    if model.dpo.sft_loss_weight > 0:
        raise ConfigError(
            f"model.dpo.sft_loss_weight={model.dpo.sft_loss_weight:g} trains on responses, and those of battles are "
            "names of models: set it to 0"
        )
