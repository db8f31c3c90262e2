"""A preference world with a known answer: what was preferred, who said so, and how often each of them was wrong.

Real preference data never tell whether a method recovered the truth. Here the text distribution, the gold quality and
the reliability of every annotator are generated from one seed, so that the share of right preferences of a trained
policy and the estimated reliabilities can be held against what is true. ``python -m nemo_rpo.world --out DIR`` writes
the data set, the truth, a tokenizer and a small pre-trained Llama to start from.
"""

from nemo_rpo.world.files import WorldConfig, write_world
from nemo_rpo.world.language import Language, LanguageConfig, stream
from nemo_rpo.world.simulated_annotators import AnnotatorConfig, Pairs, Votes, ask, draw_pairs

__all__ = [
    "AnnotatorConfig",
    "Language",
    "LanguageConfig",
    "Pairs",
    "Votes",
    "WorldConfig",
    "ask",
    "draw_pairs",
    "stream",
    "write_world",
]
