"""Preference files from one layout to another, with every annotator's name kept."""

from nemo_rpo.conversion.convert import Converted, convert
from nemo_rpo.conversion.layouts import WRITERS

__all__ = ["WRITERS", "Converted", "convert"]
