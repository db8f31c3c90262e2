"""A small server that speaks OpenAI's protocol, and misbehaves where a test asks it to.

In a test: ``with FakeServer(answer) as server: … server.url``. As a process: ``python fake_server.py --port N``, with
``--die N`` it ends itself at its N-th request (with ``--once FILE`` of its first start only). Texts are of the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]
# What a request gets: a body with its status, or bytes that are sent as they are, or None: the connection is closed.
Answer = tuple[int, Any] | bytes | None


def said(
    text: str, chat: bool = False, finish: str = "stop", tokens: int = 5, logprobs: Any = None
) -> tuple[int, Body]:
    """A completion."""
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice |= {"index": 0, "finish_reason": finish, "logprobs": logprobs}
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    kind = "chat.completion" if chat else "text_completion"
    return 200, {"id": "1", "object": kind, "created": 0, "model": "m", "choices": [choice], "usage": usage}


def refused(status: int, message: str = "no") -> tuple[int, Body]:
    """An error as OpenAI words it."""
    return status, {"error": {"message": message, "type": "x"}}


HALF = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id": "1", "choi'


class FakeServer:
    """Serves ``answer(path, body, number)``; ``number`` counts requests of the same body from 0.

    Attributes:
        seen, keys: bodies of all requests, in order, and what they were authorised by.
    """

    def __init__(self, answer: Callable[[str, Body, int], Answer], port: int = 0) -> None:
        self.seen: list[Body] = []
        self.keys: list[str | None] = []
        counts, lock = Counter(), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):
                handler.reply((200, {"object": "list", "data": [{"id": "m", "object": "model"}]}))

            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                key = json.dumps(body, sort_keys=True)
                with lock:
                    number = counts[key]
                    counts[key] += 1
                    self.seen.append(body)
                    self.keys.append(handler.headers["Authorization"])
                handler.reply(answer(handler.path, body, number))

            def reply(handler, found: Answer) -> None:
                if found is None or isinstance(found, bytes):
                    handler.wfile.write(found or b"")
                    handler.close_connection = True
                    return
                content = found[1] if isinstance(found[1], bytes) else json.dumps(found[1]).encode()
                handler.send_response(found[0])
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(content)))
                handler.send_header("retry-after-ms", "1")
                handler.end_headers()
                handler.wfile.write(content)

            def log_message(handler, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody answers from now on."""
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """For ever, in this thread."""
        self._server.serve_forever(0.05)


def by_seed(body: Body, chat: bool = False) -> Answer:
    """A text that is made of the seed and the prompt."""
    words = random.Random(f"{body.get('seed')}{body.get('prompt')}").sample(
        "one two three four five six seven".split(), 4
    )
    return said(" ".join(words), chat)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--die", type=int)
    parser.add_argument("--once", type=Path)
    args = parser.parse_args()
    mortal = args.die is not None and not (args.once and args.once.exists())
    if args.once:
        args.once.touch()

    def answer(path: str, body: Body, number: int) -> Answer:
        if mortal and len(server.seen) >= args.die:
            os._exit(7)
        return by_seed(body)

    server = FakeServer(answer, args.port)
    server.serve()


if __name__ == "__main__":
    main()
