"""Asking OpenAI-compatible servers: many requests side by side, patience with those that stumble, an end to it.

========================================  ===================================================================
what a server does                        what becomes of the item
========================================  ===================================================================
429, 408, 409, 5xx, no connection, slow   asked again (the ``openai`` package's retries), then of the next url
an answer that is empty or cut            asked again, as often
another 4xx                               :class:`Refused`, for good; 401, 403 and 404 are about all items
nothing until the retries are used up     the server is asked for a sign of life; a dead one that was started
                                          here is started once more; then all that are missing are asked again
500, or a bad answer, twice over          :class:`Refused`, where most others were answered
still nothing                             :class:`ServerError`: one line with the url and how many are missing
========================================  ===================================================================
"""

from __future__ import annotations

import collections
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from nemo_rpo.errors import ServerError, first_line, missing_extra
from nemo_rpo.serving.server_process import ServerProcess
from nemo_rpo.serving.serving_settings import ServerSettings

if TYPE_CHECKING:
    from openai import OpenAI

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_SIGN_OF_LIFE_S = 10.0
_ABOUT_ALL = (401, 403, 404)
_BROKEN = (500, 501)  # what a server says that an item is too much for; 502 to 504 are of one that is overloaded
_POLL_S = 0.2
_LONGEST_ERROR = 300  # characters


class WrongAnswer(Exception):
    """An answer without what must be in it; the item is asked again."""


class Refused(NamedTuple):
    """The server will not answer this item, whoever asks how often; ``error`` is what it said."""

    error: str


class Answered(NamedTuple, Generic[Item, Answer]):
    """An item, what came of it, and the seconds that took."""

    item: Item
    answer: Answer | Refused
    latency: float


class _Unanswered(NamedTuple):
    """Why an item has no answer yet; ``broken`` where the server answered, but with 500 or nonsense."""

    error: str
    broken: bool


class Server(NamedTuple):
    """One address: a client for it, and what requests call the model there."""

    url: str
    client: OpenAI
    model: str


Request = Callable[[Server, Item], Answer]


class Servers:
    """The servers of one settings block. Use as a context: it ends what it has started.

    Args:
        settings: checked.
        where: what the settings are called in messages.
        log: file for the output of a started server.
    """

    def __init__(self, settings: ServerSettings, where: str, log: Path) -> None:
        self.settings, self.where = settings, where
        self._process = ServerProcess(settings.command, log) if settings.command else None
        self._servers: list[Server] = []
        self._weights: str | None = None
        self._restarts = 1

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server that was started here."""
        if self._process is not None:
            self._process.stop()
        self._servers = []

    @property
    def first(self) -> Server:
        """The first of them; connects where nobody has."""
        return self.connected()[0]

    def connected(self) -> list[Server]:
        """All of them, connected to. Raises :class:`ServerError` for one that does not answer."""
        if not self._servers:
            if self._process is not None:
                self.serve(self._weights or self.settings.model or "")
            else:
                self._servers = [self._connect(url, self.settings.model) for url in self.settings.urls]
        return self._servers

    def serve(self, weights: str) -> None:
        """Has these weights served: starts the server anew where it is started here, and waits for it.

        Raises:
            ServerError: it ends, or does not answer in ``start_s``.
        """
        self._weights = weights
        if self._process is None:
            self._servers = []
            self.connected()
            return
        url = self._process.start(weights)
        end = time.monotonic() + self.settings.start_s
        while True:
            try:
                self._servers = [self._connect(url, self.settings.model, default=weights)]
                return
            except ServerError as exc:
                if not self._process.runs:
                    raise self._process.ended() from None
                if time.monotonic() > end:
                    self._process.stop()
                    raise ServerError(
                        f"the server does not answer after {self.settings.start_s:g} s ({self._process.last_words()}); "
                        f"its log is {self._process.log}; set {self.where}.start_s higher if it needs longer"
                    ) from exc
            time.sleep(_POLL_S)

    def ask(self, items: Iterable[Item], request: Request, what: str) -> Iterator[Answered]:
        """What ``request`` makes of every item, in any order; ``what`` names the items in messages: ``samples``.

        Raises:
            ServerError: some have no answer; those that have were yielded.
        """
        missing, answered = list(items), 0
        asked = len(missing)
        if not missing:
            return
        for last in (False, True):
            failed: list[tuple[Item, _Unanswered]] = []
            for item, answer, latency in self._once(missing, request):
                if isinstance(answer, _Unanswered):
                    failed.append((item, answer))
                else:
                    answered += 1
                    yield Answered(item, answer, latency)
            if not failed:
                return
            if not last and not self._lives():
                if self._process is None or not self._restarts:
                    break
                self._restarts -= 1
                self.serve(self._weights or "")
            missing = [item for item, _ in failed]
        if self._lives() and 2 * answered > asked and all(why.broken for _, why in failed):
            for item, why in failed:
                yield Answered(item, Refused(why.error), 0.0)
            return
        where = self._servers[0].url if self._servers else ", ".join(self.settings.urls)
        reasons = collections.Counter(why.error for _, why in failed)
        raise ServerError(
            f"{where}: {len(failed):,} of {asked:,} {what} are missing ({reasons.most_common(1)[0][0]}); see to the "
            "server and run the same command again: it goes on from there"
        )

    def _once(self, items: list[Item], request: Request) -> Iterator[tuple[Item, Any, float]]:
        """Each item with its answer, :class:`Refused` or :class:`_Unanswered`, and seconds. A thread a request, which
        nobody waits for where this is left early."""
        servers, done = self.connected(), queue.SimpleQueue()
        waiting, under_way, dead = collections.deque(enumerate(items)), 0, False
        room = self.settings.at_once * len(servers)

        def work(turn: list[Server], item: Item) -> None:
            start = time.monotonic()
            try:
                answer = _answer(turn, request, item, self.settings.retries)
            except BaseException as exc:  # raised where the answer is waited for
                answer = exc
            done.put((item, answer, time.monotonic() - start))

        while waiting or under_way:
            while waiting and under_way < room and not dead:
                number, item = waiting.popleft()
                turn = servers[number % len(servers) :] + servers[: number % len(servers)]
                threading.Thread(target=work, args=(turn, item), daemon=True).start()
                under_way += 1
            item, answer, latency = done.get()
            under_way -= 1
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, _Unanswered) and not dead:
                dead = not self._lives()
            yield item, answer, latency
            if dead and not under_way:
                yield from ((item, _Unanswered("it does not answer", False), 0.0) for _, item in waiting)
                return

    def _lives(self) -> bool:
        if self._process is not None and not self._process.runs:
            return False
        for server in self._servers:
            try:
                server.client.with_options(timeout=_SIGN_OF_LIFE_S, max_retries=1).models.list()
                return True
            except Exception as exc:
                if _status(exc) is not None:  # it says something, if only that it has no such list
                    return True
        return False

    def _connect(self, url: str, model: str | None, default: str | None = None) -> Server:
        openai = _openai()
        settings = self.settings
        client = openai.OpenAI(
            base_url=url,
            api_key=os.environ[settings.api_key_env] if settings.api_key_env else "none",
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        )
        try:
            listed = [found.id for found in client.with_options(timeout=_SIGN_OF_LIFE_S, max_retries=0).models.list()]
        except openai.APIStatusError as exc:
            if exc.status_code in (401, 403):
                advice = f"name the environment variable with its key by {self.where}.api_key_env"
                raise ServerError(f"{url}: {_short(exc)}; {advice}") from exc
            listed = []
        except Exception as exc:
            raise ServerError(
                f"{url} does not answer ({_short(exc)}); start the server, or mend {self.where}.url"
            ) from exc
        name = model or (default if default in listed else next(iter(listed), default))
        if name is None:
            raise ServerError(f"{url} lists no model; say which with {self.where}.model")
        return Server(url, client, name)


def ask_once(server: Server, request: Request, item: Item, retries: int) -> Answer | Refused:
    """One item of one server, in this thread. Raises :class:`ServerError` where it gets no answer."""
    answer = _answer([server], request, item, retries)
    if isinstance(answer, _Unanswered):
        raise ServerError(f"{server.url}: no answer ({answer.error})")
    return answer


def _answer(servers: list[Server], request: Request, item: Any, retries: int) -> Any:
    """What one item gets, of the first server that answers."""
    openai, why = _openai(), None
    for server in servers:
        for attempt in range(retries + 1):
            try:
                return request(server, item)
            except openai.APIStatusError as exc:
                status = exc.status_code
                if status in _ABOUT_ALL:
                    raise ServerError(f"{server.url}: {_short(exc)}") from exc
                if status < 500 and status not in (408, 409, 429):
                    return Refused(f"{status}: {_short(exc)}")
                why = _Unanswered(f"{status}: {_short(exc)}", status in _BROKEN)
                break
            except openai.APIConnectionError as exc:  # and APITimeoutError, a kind of it
                cause = exc.__cause__ or exc
                why = _Unanswered(_short(cause if str(cause) else exc), False)
                break
            except (WrongAnswer, openai.APIError, ValueError, TypeError, AttributeError, KeyError, IndexError) as exc:
                # Half an answer, or something else altogether: it was sent with status 200.
                said = str(exc) if isinstance(exc, WrongAnswer) else f"an answer that cannot be read: {_short(exc)}"
                why = _Unanswered(said, True)
                time.sleep(min(0.1 * 2**attempt, 5.0))
    return why


def _status(exc: BaseException) -> int | None:
    return getattr(exc, "status_code", None)


def _short(exc: BaseException) -> str:
    """What a server said, on one line: the message of its error object where it sent one."""
    body = getattr(exc, "body", None)
    message = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    text = message if isinstance(message, str) and message.strip() else first_line(exc)
    return " ".join(text.split())[:_LONGEST_ERROR]


def _openai() -> Any:
    try:
        import openai
    except ImportError as exc:
        raise missing_extra("openai", "loop") from exc
    return openai
