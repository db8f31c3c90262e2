"""Errors that are answers: one line that names what to change.

Entry points print the message of an :class:`RPOError` on one line and exit with status 2 on every rank; any other
exception is a bug and keeps its traceback.
"""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # and those that turn text round

_BREAKS = re.compile(rf"{_CONTROL.pattern}|[\t\n\u2028\u2029]")


class RPOError(Exception):
    """A problem the user can mend; its message says what to change."""


class ConfigError(RPOError, ValueError):
    """A setting that is unknown, missing, or does not fit another one or the cluster."""


class DataError(RPOError, ValueError):
    """A row, file or data set that cannot be trained on; the message names the file and row."""


class NoTemplateError(DataError):
    """A row of messages, and a tokenizer that has no chat template: no row of messages can be rendered."""


class RowError(DataError):
    """A row that cannot be used; its text is ``file:row: problem``, its ``kind`` one word to count such rows by."""

    def __init__(self, file: str, row: int, problem: str, kind: str = "bad_field") -> None:
        super().__init__(file, row, problem, kind)
        self.file, self.row, self.problem, self.kind = file, row, problem, kind

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.problem}"


class CheckpointError(RPOError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class ReferencePolicyError(RPOError, RuntimeError):
    """A reference policy that does not fit the policy (step-0 law broken, or cached log-probs of other weights)."""


class TrainingError(RPOError, RuntimeError):
    """A run that cannot go on: it has diverged, or its ranks no longer agree."""


class ServerError(RPOError, RuntimeError):
    """A server that does not answer, or not as it must; what it has answered is kept, and a rerun goes on."""


class ReleaseError(RPOError, RuntimeError):
    """An installed release of Megatron-Core that this package does not fit; the message names those it does."""


class MissingExtraError(RPOError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def first_line(exc: BaseException) -> str:
    """What a library's exception says, on one line: the first of its message, or its kind where it has none."""
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an absent optional ``package``: ``raise missing_extra("pyarrow", "hf") from exc``."""
    return MissingExtraError(f"{package} is not installed; run: pip install 'nemo-rpo[{extra}]'")


def printable(text: str, *, cell: bool = False) -> str:
    """``text`` for a terminal: control characters (but for tab and line feed) and those that turn the direction of text
    as their escapes, so that an id or a path from a file cannot move the cursor or change the terminal.

    Args:
        cell: what must stay in its cell of a table, or in its line: tabs and all ends of lines are escaped as well.

    >>> printable("w\\x1b[31m")
    'w\\\\x1b[31m'
    >>> printable("a\\tb\\n"), printable("a\\tb\\n", cell=True)
    ('a\\tb\\n', 'a\\\\tb\\\\n')
    """
    return (_BREAKS if cell else _CONTROL).sub(lambda found: found[0].encode("unicode_escape").decode(), text)
