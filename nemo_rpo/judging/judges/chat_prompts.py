"""What a chat judge is asked: a Jinja template of the user's, or the package's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, first_line, missing_extra
from nemo_rpo.judging.judging_settings import ChatJudge, GenerativeJudge
from nemo_rpo.judging.verdicts import Shown

_QUESTION = """\
Two assistants were given the same request. Decide which response serves the person who made it better: right, helpful,
honest, and no longer than it needs to be. The order in which the responses stand, and their length, mean nothing.

[Request]
{{ prompt }}

[Response {{ words.first }}]
{{ first }}

[Response {{ words.second }}]
{{ second }}

"""
_ENDINGS = {
    "parse": """\
Compare them in a few sentences. Then end with your verdict, in double brackets: [[{{ words.first }}]],
[[{{ words.second }}]], or [[{{ words.tie }}]] if neither is better.""",
    "choice": """\
Answer with one word: {{ words.first }}, {{ words.second }}, or {{ words.tie }} if neither is better.""",
    "logprobs": """\
Answer with one word, {{ words.first }} or {{ words.second }}. The better response is:""",
}


class ChatPrompt:
    """A template, compiled.

    Attributes:
        source: its text.

    Raises:
        ConfigError: it cannot be read, or is no Jinja.
        MissingExtraError: Jinja is not installed.
    """

    def __init__(self, judge: ChatJudge | GenerativeJudge) -> None:
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as exc:
            raise missing_extra("jinja2", "loop") from exc
        self.place = judge.prompt or "the package's prompt"
        self.source = _QUESTION + _ENDINGS[judge.verdict]
        if judge.prompt:
            try:
                self.source = Path(judge.prompt).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{judge.prompt} cannot be read ({first_line(exc)})") from exc
        self._words, self._error = judge.words, jinja2.TemplateError
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True)
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as exc:
            raise ConfigError(f"{self.place}:{exc.lineno}: {exc.message}") from exc
        # Found now, and not at the first of many pairs.
        self.text(Shown("", "prompt", "first", "second", "a"))

    def text(self, shown: Shown) -> str:
        """What the judge is asked. Raises :class:`ConfigError` where the template asks for something else."""
        values = {
            "prompt": plain(shown.prompt),
            "first": plain(shown.first),
            "second": plain(shown.second),
            "words": self._words,
            "fields": _Anything(shown.fields) if not shown.pair else shown.fields,
        }
        try:
            return self._template.render(values)
        except self._error as exc:
            advice = "it is given prompt, first, second, words and fields"
            raise ConfigError(f"{self.place}: {first_line(exc)}; {advice}") from exc


class _Anything(dict):
    """Of the trial pair, which has no row: whatever field is asked for."""

    def __missing__(self, name: Any) -> str:
        return ""


def plain(text: Text | Mapping) -> str:
    """A text as it is; messages one after the other, a single one without its role.

    >>> plain([{"role": "assistant", "content": "Yes."}])
    'Yes.'
    """
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0].get("content") or "")
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in text)
