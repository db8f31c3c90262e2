"""How responses are sampled, and the only place for these defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from nemo_rpo.config.types import Count, NonNegative, Range
from nemo_rpo.errors import ConfigError
from nemo_rpo.serving.serving_settings import ServerSettings

TopP = Annotated[float, Range(0, 1, open_low=True)]


@dataclass
class SampleSettings(ServerSettings):
    """The server, and what is asked of it.

    Attributes:
        samples: of each prompt.
        temperature, top_p, max_tokens: of the sampling.
        stop: texts that end a response.
        endpoint: ``completions`` continues a text; ``chat`` has the server's chat template put around it; auto: chat
            for prompts of messages, completions for texts. Messages always go to chat.
        logprobs: ask for the log-probs of the sampled tokens, where the server knows them.
        reload: a command that has the servers at ``url`` serve the weights ``{model}``; None: they do, or ``command``
            starts a server on them.
        canary: largest mean difference of log-probs, nats a token, between the server and the weights that it must
            serve; 0 leaves the comparison out.
    """

    samples: Count = 4
    temperature: NonNegative = 0.8
    top_p: TopP = 0.95
    max_tokens: Count = 512
    stop: list[str] = field(default_factory=list)
    endpoint: Literal["auto", "completions", "chat"] = "auto"
    logprobs: bool = True
    reload: str | None = None
    canary: NonNegative = 1e-2

    def check(self, where: str = "sample") -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        self.check_server(where)
        self.check_samples(where)
        if self.reload and not self.urls:
            raise ConfigError(f"{where}.reload goes with {where}.url; a server that is started here is started anew")

    def check_samples(self, where: str = "sample") -> None:
        """Of what is sampled, whoever does it. Raises as :meth:`check` does."""
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"{where}.temperature is 0, so that all samples of a prompt are one text: set {where}.samples to 1"
            )

    def outcome(self) -> dict[str, Any]:
        """What the samples depend on: everything but where the server is and how patiently it is asked."""
        named = ("samples", "temperature", "top_p", "max_tokens", "stop", "endpoint", "model", "extra")
        return {name: getattr(self, name) for name in named} | {"transformers": self.is_transformers}
