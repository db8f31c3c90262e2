"""What the step refuses before anything is built."""

from __future__ import annotations

import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.megatron_bridge.step import RPOForwardStep


@pytest.mark.parametrize("name", ["p2l_bt", "p2l_rao_kupper", "p2l_bag", "tdpo1"])
def test_a_loss_that_needs_more_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"rpo\.base_loss={name} needs more.*own engine") as caught:
        RPOForwardStep(rpo={"base_loss": name})
    assert "\n" not in str(caught.value)
