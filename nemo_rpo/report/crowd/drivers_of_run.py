"""What the labels of a run reward: the believed ones and the distrusted ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_rpo.crowd.factors.answer_features import FEATURES, content_of, features
from nemo_rpo.crowd.factors.driving import drivers_of
from nemo_rpo.report.crowd.drivers_section import section_of_drivers
from nemo_rpo.report.rendering.document import Section
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source


def sections(run: Run, data: Sequence[Path] | None) -> list[Section]:
    """The section in a list; an empty one without texts (``data`` None), or for completions judged alone."""
    if data is None:
        return []
    x, prompt = np.full((len(run.labels), len(FEATURES)), np.nan), np.zeros(len(run.labels), dtype=np.int64)
    prompts: dict[str, int] = {}
    for pair in Source(run, data):
        if pair.merged.alone:
            return []
        if len(pair.labels):
            merged = pair.merged
            apart = features(merged.prompt, merged.first) - features(merged.prompt, merged.second)
            signs = [vote.sign for vote in merged.votes if vote.sign]
            x[pair.labels] = np.outer(signs, apart)
            prompt[pair.labels] = prompts.setdefault(content_of(merged.prompt), len(prompts))
    there = ~np.isnan(x).any(1)
    _, of_pair = np.unique(run.labels.pair_id[there], return_inverse=True)
    found = drivers_of(x[there], list(FEATURES), run.labels.w_last[there], of_pair, prompt[there])
    return [section_of_drivers(found)]
