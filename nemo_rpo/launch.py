"""How a run starts its ranks and how it ends: one line for a user's mistake, failure on every rank, no hang."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import FrameType
from typing import NoReturn

from nemo_rpo.errors import RPOError, printable
from nemo_rpo.process_tree import (
    adopt_orphans,
    die_with_parent,
    end_descendants,
    let_children_die_with_us,
)

# The environment variable that tells a run the command it was started by.
COMMAND = "NEMO_RPO_COMMAND"
USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT

# A rank other than 0 waits before it speaks: where all ranks fail alike, rank 0 speaks, and torchrun ends the rest
# within about 0.1 s of its exit; on a busy machine rank 0 may be seconds behind the others. The ranks of a node wait in
# turn, so that of several only the first is heard.
_FIRST_RANK_SPEAKS_S = 3.0
_BETWEEN_RANKS_S = 0.5
# The error of a collective is usually the echo of a peer that is gone and has said why.
_PEER_SPEAKS_S = 10.0
_LOST_PEER = re.compile(r"gloo/transport|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Socket Timeout")


def run_on_ranks(main: Callable[[], None]) -> int:
    """Runs the body of an entry point on this rank and returns its exit status; the one place that prints errors.

    An :class:`RPOError` becomes one line ``error: …`` and status 2. Where ranks fail alike only global rank 0 prints;
    where one fails alone it prints with its number. Any other exception is a bug and prints its traceback, status 1.
    With several ranks a failing process leaves at once, past any cleanup that could wait for the others; torchrun then
    ends them. Nothing is initialised here; a process group that ``main`` leaves open is closed.

    SIGTERM keeps its default action, and with several ranks so does SIGINT: a Python handler would wait for the
    collective that a rank is in. (A run that takes steps listens to them: :mod:`nemo_rpo.training.process.stop`.)
    Files are safe from that, as from a power cut: they appear under their name complete.
    Helper processes end with their rank, and ranks with the torchrun that started them, whatever ends it.
    """
    let_children_die_with_us()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    if _world_size() > 1:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main()
    except RPOError as exc:
        return _leave("error{}: " + printable(" ".join(str(exc).split())), USER_ERROR)
    except KeyboardInterrupt:
        return _leave("interrupted{}", INTERRUPTED)
    except Exception as exc:
        if _world_size() == 1:
            raise
        if _LOST_PEER.search(str(exc)):
            time.sleep(_PEER_SPEAKS_S)
        return _leave("unexpected error{}: " + traceback.format_exc(), 1)
    _close_process_group()
    return 0


def call_and_leave(main: Callable[[], int]) -> NoReturn:
    """Ends this process with the status that ``main`` returns, and does not take its modules apart.

    A thread of a process group may then still be about to drop the tensors of the last collective. It waits for the
    interpreter's lock, gets none, and ends a process that has done all its work by SIGABRT, which torchrun and Slurm
    take for a failed run. (Gloo's threads live as long as anything holds the group, and Megatron-Core's module does.)
    Threads are joined, exit functions of ``main`` called and both outputs written before; exit functions that were
    registered earlier are not called.
    """
    status = None

    def at_last() -> None:
        if status is not None:
            logging.shutdown()  # else called after this: it was registered earlier
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # closed or full; ``main`` has said so
                    if stream is not None:
                        stream.flush()
            os._exit(status)

    atexit.register(at_last)  # the first to be registered is the last to be called
    status = main()
    sys.exit(status)


def start_ranks(
    ranks: int, module: str, arguments: Sequence[str], nodes: int = 1, rendezvous: str | None = None
) -> int:
    """Runs ``python -m module arguments`` on ``ranks`` processes of this machine under torchrun.

    With ``rendezvous`` (``host:port`` of one of them) the launchers of ``nodes`` machines make one world. None is
    restarted: a run goes on from its last checkpoint when all are started again, which is for the batch system to do.
    SIGUSR1, with which a run saves and stops, is passed on to the ranks, and so is the first SIGINT or SIGTERM, as
    SIGINT; the second one ends the ranks at once. (Torch before 2.9 gives them 30 seconds after the first.)

    Returns the exit status: 0, or that of the rank that failed first, whose own line has said why.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    # torchrun's own choice, without its warning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    adopt_orphans()
    signal.signal(signal.SIGUSR1, _tell_ranks)
    interrupts = _Interrupts()
    logging.disable(logging.ERROR)  # a failed rank has said what is wrong; torchrun would add its table and traceback
    where = ["--standalone"]
    if rendezvous is not None:
        where = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", rendezvous]
    try:
        where += interrupts.left_to_us()
        launch = [*where, "--nproc-per-node", str(ranks), "--module", module, *arguments]
        torchrun.run(torchrun.parse_args(launch))
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        if failure.exitcode == -signal.SIGINT and interrupts.asked is not None:  # a rank that has nothing to save yet
            print("interrupted", file=sys.stderr, flush=True)
            return 128 + interrupts.asked
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"error: rank {rank} was ended by {name}", file=sys.stderr, flush=True)
            return 128 - failure.exitcode
        return failure.exitcode
    except RendezvousError as exc:
        print(f"error: the launchers of {nodes} nodes do not find each other at {rendezvous}: {exc}", file=sys.stderr)
        return 1
    except SignalException as exc:
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + exc.sigval
    finally:
        logging.disable(logging.NOTSET)
        end_descendants()
    return 0


class _Interrupts:
    """What a launcher does with Ctrl-C and SIGTERM: the first goes to the ranks, the second ends them.

    Attributes:
        asked: the first one's number.
    """

    def __init__(self) -> None:
        self.asked: int | None = None

    def left_to_us(self) -> list[str]:
        """torchrun's arguments that leave both signals to this object; none, and it keeps them, before torch 2.9."""
        from torch.distributed.launcher.api import LaunchConfig

        if "signals_to_handle" not in {field.name for field in fields(LaunchConfig)}:
            return []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)
        return ["--signals-to-handle", "SIGHUP,SIGQUIT"]

    def _received(self, number: int, frame: FrameType | None) -> None:
        import psutil
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.asked is None and psutil.Process().children():
            self.asked = number
            return _tell_ranks(signal.SIGINT, frame)
        end_descendants()
        raise SignalException("interrupted", signal.Signals(number))


def _tell_ranks(number: int, frame: FrameType | None) -> None:
    import psutil

    for rank in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _leave(text: str, status: int) -> int:
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(_FIRST_RANK_SPEAKS_S + _BETWEEN_RANKS_S * int(os.environ.get("LOCAL_RANK", "0")))
    print(text.replace("{}", f" on rank {rank}" if rank else "", 1), file=sys.stderr, flush=True)
    if _world_size() > 1 or _has_process_group():
        # Past the interpreter's cleanup too: a process group that is still open has threads, and its destructor aborts.
        sys.stdout.flush()
        # Then nobody else ends the writers of a checkpoint that failed; they would hold the terminal's pipe open.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(status)
    return status


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _has_process_group() -> bool:
    # Looked up, not imported: commands that never meet a process group need not load torch.distributed.
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _close_process_group() -> None:
    if _has_process_group():
        sys.modules["torch.distributed"].destroy_process_group()
