"""Losses that a trainer of others cannot give what they need are refused before anything is built."""

from __future__ import annotations

import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.rpo_block import dpo_config, log_prob_loss, rpo_config
from nemo_rpo.losses import COLUMNS

OF_THE_DATA = {name for name, column in COLUMNS.items() if column.source == "row"}  # Megatron-Bridge's data may carry


@pytest.mark.parametrize("columns", [set(), OF_THE_DATA], ids=["no columns", "all that data can carry"])
@pytest.mark.parametrize("name", ["p2l_bt", "p2l_rao_kupper", "p2l_bag"])
def test_battles_need_the_head_of_the_own_engine(name, columns):
    with pytest.raises(ConfigError, match=rf"block\.base_loss={name} needs more.*'coefficients'.*own engine") as caught:
        log_prob_loss(rpo_config({"base_loss": name}, "block"), dpo_config(None, "dpo"), "block", columns)
    assert "\n" not in str(caught.value)
