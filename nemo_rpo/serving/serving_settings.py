"""How a server is reached, and the only place for these defaults."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_rpo.config.types import Count, Positive, WholeNumber
from nemo_rpo.errors import ConfigError


@dataclass
class ServerSettings:
    """Where an OpenAI-compatible server is, and how patiently it is asked.

    Attributes:
        url: its address, ``http://host:8000/v1``, or several, which share the requests; None: it is started.
        command: starts one where there is no url; ``{model}`` is the folder of the weights, ``{port}`` a free port.
        model: what requests call the model; None: the first that the server lists.
        api_key_env: environment variable with the key; None: none is sent, so that no server gets one that is not
            meant for it.
        timeout_s: of one request.
        retries: of a request that got no answer, a wrong one, 408, 409, 429 or 5xx; the pause between two grows, and
            is what the server asks for where it does (``Retry-After``).
        concurrency: requests under way at once, of each url.
        start_s: longest wait for a started server to answer.
        dialect: ``transformers`` where ``transformers serve`` answers, which takes the temperature only with a
            generation config; auto: told from ``command``.
        extra: further fields of every request's body.
    """

    url: str | list[str] | None = None
    command: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    timeout_s: Positive = 600.0
    retries: WholeNumber = 5
    concurrency: Count = 16
    start_s: Positive = 900.0
    dialect: Literal["auto", "openai", "transformers"] = "auto"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        """All of them, without a slash at the end."""
        given = [self.url] if isinstance(self.url, str) else self.url or []
        return [url.rstrip("/") for url in given]

    @property
    def is_transformers(self) -> bool:
        """Whether ``transformers serve`` answers."""
        if self.dialect == "auto":
            return "transformers serve" in " ".join((self.command or "").split())
        return self.dialect == "transformers"

    @property
    def at_once(self) -> int:
        """Requests under way at once, of each url: ``transformers serve`` has one random state for all of them, so that
        a seed repeats only one by one."""
        return 1 if self.is_transformers else self.concurrency

    def body(self, sample: bool = True) -> dict[str, Any]:
        """Fields of a request beside OpenAI's. ``transformers serve`` samples only where its own generation config says
        so, and that config has a ``top_k`` of 50 unless told otherwise.
        """
        own = {}
        if self.is_transformers:
            own = {"generation_config": json.dumps({"do_sample": sample} | ({"top_k": 0} if sample else {}))}
        return own | self.extra

    def check_server(self, where: str) -> None:
        """Raises :class:`ConfigError` with one line that names the setting below ``where`` to change."""
        if bool(self.urls) == bool(self.command):
            raise ConfigError(f"{where}.url or {where}.command must say where the server is, and not both")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"{where}.url is '{url}'; it must begin with http:// or https://")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ConfigError(f"{where}.api_key_env: ${self.api_key_env} is not set")
        if self.command and "{port}" not in self.command:
            raise ConfigError(f"{where}.command must have {{port}} where the server's port belongs")
