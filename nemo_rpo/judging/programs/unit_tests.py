"""Code that is run against unit tests, in a process of its own with limits.

The limits keep a program that loops, eats memory or fills the disk from harming the run. They are no prison: code that
means harm has the rights of the user who judges it. Judge code of strangers in a container without a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_DISK = 16 << 20  # bytes of any file that it writes
# What the child runs: limits first, then the code once for each test. One line an answer, on a pipe of its own, so that
# what the code prints is no answer, and tests before one that ends the process count.
_CHILD = """
import json, os, resource, signal, sys
work = json.load(sys.stdin)
answers = os.fdopen(work["pipe"], "w")
for limit, value in ((resource.RLIMIT_AS, work["memory"]), (resource.RLIMIT_FSIZE, work["disk"]),
                     (resource.RLIMIT_CPU, work["cpu"]), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
sys.stdin = open(os.devnull)
class Late(BaseException):
    pass
def late(*_):
    raise Late()
signal.signal(signal.SIGALRM, late)
def runs(source, space):
    signal.setitimer(signal.ITIMER_REAL, work["seconds"])
    try:
        exec(compile(source, "<code>", "exec"), space)
        return True
    except BaseException:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
for test in work["tests"]:
    space = {"__name__": "__main__"}
    passed = runs(work["code"], space) and runs(test, space)
    answers.write("1\\n" if passed else "0\\n")
    answers.flush()
os._exit(0)
"""


def pass_rate(
    prompt: str,
    response: str,
    fields: Mapping[str, Any],
    field: str = "tests",
    seconds: float = 5.0,
    memory_mb: int = 1024,
    prepend: str = "",
) -> float | None:
    """The share of the tests in the row's ``field`` that the response's code passes; None without tests.

    Args:
        field: a list of statements (``assert add(1, 2) == 3``), or one text of them, a line each.
        seconds: for the code with one test.
        memory_mb: for all of it.
        prepend: code that stands before the response's: imports, say.

    The code is the response's last fenced block, or all of it.

    >>> pass_rate("", "def f(x): return x + 1", {"tests": ["assert f(1) == 2", "assert f(1) == 3"]})
    0.5
    """
    tests = _tests(fields.get(field))
    if not tests:
        return None
    passed = _run(f"{prepend}\n{code_in(response)}", tests, seconds, memory_mb << 20)
    return sum(passed) / len(tests)


def code_in(response: str) -> str:
    """The last fenced block of a response, or all of it where there is none.

    >>> code_in("So:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    found = _BLOCK.findall(response)
    return found[-1] if found else response


def _tests(value: Any) -> list[str]:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    return [str(test) for test in value or ()]


def _run(code: str, tests: Sequence[str], seconds: float, memory: int) -> list[bool]:
    """Of each test that was got to, whether it passed. The process and what it started end with this call."""
    read, write = os.pipe()
    whole = seconds * 2 * len(tests) + 5
    work = {"code": code, "tests": list(tests), "seconds": seconds, "memory": memory, "disk": _DISK, "pipe": write}
    work["cpu"] = int(whole) + 1
    environment = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        with tempfile.TemporaryDirectory() as folder, os.fdopen(read) as answers:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(write,),
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
            os.close(write)
            write = -1
            try:
                process.communicate(json.dumps(work).encode(), timeout=whole)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                pass
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.set_blocking(answers.fileno(), False)  # a child of the child may hold the other end
            said = answers.read() or ""
    finally:
        if write >= 0:
            os.close(write)
    return [line == "1" for line in said.splitlines()][: len(tests)]
