"""The language: probabilities that add up, an entropy that enumeration confirms, streams that stay apart."""

import itertools

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.world.language import Language, LanguageConfig, stream

SMALL = LanguageConfig(styles=2, content=3, length=3)


def test_vocabulary_is_the_documented_one():
    words = LanguageConfig().vocabulary
    assert len(words) == len(set(words)) == 32
    assert words[:8] == ("<pad>", "<bos>", "<eos>", "sep", "s0", "s1", "s2", "s3")
    assert words[8] == "c0" and words[31] == "c23"


def test_table_rows_are_distributions():
    table = Language(LanguageConfig(), seed=1).table
    assert table.shape == (4, 25, 24)
    np.testing.assert_allclose(table.sum(-1), 1.0, atol=1e-12)


def test_responses_follow_the_bigram_table():
    language = Language(SMALL, seed=3)
    style = np.ones(200_000, dtype=np.int64)
    response = language.respond(style, stream(3, "train"))
    first = np.bincount(response[:, 0], minlength=3) / len(style)
    np.testing.assert_allclose(first, language.table[1, -1], atol=0.005)
    for previous in range(3):
        following = response[:, 1:][response[:, :-1] == previous]
        observed = np.bincount(following, minlength=3) / len(following)
        np.testing.assert_allclose(observed, language.table[1, previous], atol=0.005)


def test_entropy_equals_the_sum_over_every_text():
    language = Language(SMALL, seed=5)
    total = 0.0
    for style, response in itertools.product(range(2), itertools.product(range(3), repeat=3)):
        probability = 0.5
        for previous, token in itertools.pairwise((3, *response)):
            probability *= language.table[style, previous, token]
        total -= probability * np.log(probability)
    assert language.entropy() == pytest.approx(total, rel=1e-12)


def test_quality_is_the_sum_of_the_utilities_of_the_style():
    language = Language(SMALL, seed=0)
    quality = language.quality(np.array([1, 0]), np.array([[0, 2, 2], [1, 1, 1]]))
    u = language.utility
    np.testing.assert_allclose(quality, [u[1, 0] + 2 * u[1, 2], 3 * u[0, 1]])


def test_token_ids_spell_the_text():
    language = Language(LanguageConfig(), seed=0)
    style = np.array([2])
    response = language.respond(style, stream(0, "train"))
    words = [language.config.vocabulary[i] for i in language.token_ids(style, response)[0]]
    assert words == ["<bos>", *(language.prompt_text(2) + language.response_text(response[0])).split(), "<eos>"]
    assert len(words) == language.config.text_length == 12


def test_streams_are_reproducible_and_differ_by_name_and_seed():
    draws = {(s, n): stream(s, n).random() for s in (0, 1) for n in ("train", "validation")}
    assert len(set(draws.values())) == 4
    assert stream(0, "train").random() == draws[0, "train"]


def test_a_size_below_one_is_named():
    with pytest.raises(ConfigError, match="content must be at least 1, got 0"):
        LanguageConfig(content=0)
