"""Preference files from one layout to another, with every annotator's name kept."""

from nemo_rpo.conversion.layouts import WRITERS, WRITERS_OF_ALONE
from nemo_rpo.conversion.rewrite import Converted, convert

__all__ = ["WRITERS", "WRITERS_OF_ALONE", "Converted", "convert"]
