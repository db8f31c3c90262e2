"""How a preference file is to be read; ``model.data`` inherits these settings and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RowFormat:
    """Where in a row the pair, the labels and the annotators stand.

    A key that is not the default is a promise: a row without it is then an error, so that a misspelt key cannot turn
    two hundred annotators into one.
    """

    layout: str = "auto"  # auto: from the fields of the first row; or a name of nemo_rpo.data.formats.LAYOUTS
    annotator_key: str = "annotator"
    pair_id_key: str = "pair_id"
    # What the file calls a field that this package knows under another name: {annotator: WorkerId, prompt: data.text}.
    columns: dict[str, str] = field(default_factory=dict)
    # The models that battles are between, in the order of the head's outputs: losses p2l_* alone.
    players: list[str] = field(default_factory=list)

    @property
    def annotator_required(self) -> bool:
        """Whether a row without the annotator's field is an error: the key was named by the user."""
        return self.annotator_key != RowFormat.annotator_key or self.annotator_key in self.columns

    @property
    def pair_id_required(self) -> bool:
        """Whether a row without the pair's id is an error: the key was named by the user."""
        return self.pair_id_key != RowFormat.pair_id_key or self.pair_id_key in self.columns
