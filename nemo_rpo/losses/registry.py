"""Losses by the names the field calls them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses.base import PreferenceLoss
from nemo_rpo.losses.options import nearest

Loss = TypeVar("Loss", bound=type[PreferenceLoss])
_LOSSES: dict[str, type[PreferenceLoss]] = {}


def register(name: str) -> Callable[[Loss], Loss]:
    """Class decorator that enters a :class:`PreferenceLoss` under ``name``; a taken name is a :class:`ConfigError`."""

    def enter(loss: Loss) -> Loss:
        _add_own()
        if name in _LOSSES:
            raise ConfigError(f"the loss name '{name}' is taken by {_LOSSES[name].__qualname__}: register another name")
        loss.name = name
        _LOSSES[name] = loss
        return loss

    return enter


def loss_class(name: str) -> type[PreferenceLoss]:
    """The class registered under ``name``; an unknown one is a :class:`ConfigError` with the nearest."""
    _add_own()
    if name not in _LOSSES:
        raise ConfigError(f"unknown loss '{name}'{nearest(name, _LOSSES)}")
    return _LOSSES[name]


def loss_names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    _add_own()
    return tuple(sorted(_LOSSES))


def _add_own() -> None:
    """Enters this package's losses, which their modules do when they are imported."""
    importlib.import_module("nemo_rpo.losses.families")


def build_loss(name: str, **options: Any) -> PreferenceLoss:
    """The loss called ``name`` with ``options`` over its defaults.

    Raises:
        ConfigError: an unknown name or option (the message has the nearest known one), or a value out of range.

    >>> build_loss("ipo", beta=0.2)
    IPO(beta=0.2, average_log_probs=False)
    >>> build_loss("ipo", bta=0.2)
    Traceback (most recent call last):
    nemo_rpo.errors.ConfigError: the loss 'ipo' has no option 'bta'; did you mean 'beta'?
    """
    loss = loss_class(name)
    known = [spec.name for spec in fields(loss)]
    for option in options:
        if option not in known:
            raise ConfigError(f"the loss '{name}' has no option '{option}'{nearest(option, known)}")
    return loss(**options)
