"""What is wrong with a preference file, found before anything is trained on it. Needs no torch and no GPU."""

from nemo_rpo.validation.clean import LeftOut, write_clean
from nemo_rpo.validation.findings import CHECKS, Check, Finding, Findings, Severity
from nemo_rpo.validation.report import ValidationReport
from nemo_rpo.validation.scan import Validation, validate
from nemo_rpo.validation.validation_settings import ValidationSettings

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Findings",
    "LeftOut",
    "Severity",
    "Validation",
    "ValidationReport",
    "ValidationSettings",
    "validate",
    "write_clean",
]
