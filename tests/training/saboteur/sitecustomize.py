"""Stops a run at an exact moment: with this folder on PYTHONPATH, Python imports this file before a run begins.

``STOP_AT`` is ``kill EVENT PATH`` or ``interrupt EVENT PATH``. Just before the first audit event of that name
(``open``, ``os.rename``, ``shutil.rmtree``, …) on a path that ends with ``PATH``, the process group dies as by kill -9,
or the launcher of the ranks gets a Ctrl-C while this rank stands still.
"""

import os
import signal
import sys

_HOW, _EVENT, _PATH = (os.environ.get("STOP_AT", "").split(" ") + [""] * 3)[:3]


def _watch(event: str, arguments: tuple) -> None:
    if event != _EVENT or not str(arguments[0]).endswith(_PATH):
        return
    if _HOW == "kill":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()


if _EVENT:
    sys.addaudithook(_watch)
