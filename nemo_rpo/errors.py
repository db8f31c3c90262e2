"""Errors that are answers: one line that names what to change.

Entry points print the message of an :class:`RPOError` on one line and exit with status 2 on every rank; any other
exception is a bug and keeps its traceback.
"""


class RPOError(Exception):
    """A problem the user can mend; its message says what to change."""


class ConfigError(RPOError, ValueError):
    """A setting that is unknown, missing, or does not fit another one or the cluster."""


class DataError(RPOError, ValueError):
    """A row, file or data set that cannot be trained on; the message names the file and row."""


class CheckpointError(RPOError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class ReferencePolicyError(RPOError, RuntimeError):
    """A reference policy that does not fit the policy (step-0 law broken, or cached log-probs of other weights)."""


class MissingExtraError(RPOError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an absent optional ``package``: ``raise missing_extra("pyarrow", "hf") from exc``."""
    return MissingExtraError(f"{package} is not installed; run: pip install 'nemo-rpo[{extra}]'")
