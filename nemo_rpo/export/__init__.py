"""What a run has learnt, as data: labels to look at again, a cleaned data set, the weight of every annotator."""

from nemo_rpo.export.annotator_weights import write_annotator_weights
from nemo_rpo.export.cleaned import Cleaning, ExportSettings, write_cleaned
from nemo_rpo.export.doubtful import write_doubtful
from nemo_rpo.export.relabelled import Relabelled, read_relabelled

__all__ = [
    "Cleaning",
    "ExportSettings",
    "Relabelled",
    "read_relabelled",
    "write_annotator_weights",
    "write_cleaned",
    "write_doubtful",
]
