"""Stops a run at an exact moment: with this folder on PYTHONPATH, Python imports this file before a run begins.

``STOP_AT`` is ``HOW EVENT PATH``. Just before the first audit event of that name (``open``, ``os.rename``,
``shutil.rmtree``, …) on a path that ends with ``PATH``,

    kill        the process group dies as by kill -9
    die         this process and its parent do, but for the leader of the group
    interrupt   the launcher of the ranks gets a Ctrl-C while this rank stands still
    slow        this process stands still for a while
"""

import os
import select
import signal
import sys
import time

_HOW, _EVENT, _PATH = (os.environ.get("STOP_AT", "").split(" ") + [""] * 3)[:3]


def _watch(event: str, arguments: tuple) -> None:
    if event != _EVENT or not str(arguments[0]).endswith(_PATH):
        return
    if _HOW == "slow":
        return time.sleep(20)
    if _HOW == "kill":
        os.killpg(0, signal.SIGKILL)
    if _HOW == "die":
        if os.getppid() != os.getpgrp():
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell)  # and no pause(): the signal may be there before it
    os.kill(os.getppid(), signal.SIGINT)
    select.select([told], [], [], 60)
    signal.set_wakeup_fd(before)


if _EVENT:
    sys.addaudithook(_watch)
