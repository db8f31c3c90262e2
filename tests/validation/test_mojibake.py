"""Looking beside the letters beyond ASCII finds what looking through the whole text finds."""

import random

import pytest

from nemo_rpo.validation.texts import _BEYOND_ASCII, _somewhere

badness = pytest.importorskip("ftfy.badness", reason="broken encodings need ftfy: pip install 'nemo-rpo[data]'")

CLEAN = ["café", "naïve", "“quoted”", "Größe", "€5", "слово", "日本", "½", "x² + y²", "a – b", "Ångström", "œuvre"]
BROKEN = [word.encode().decode(code, "replace") for word in CLEAN for code in ("cp1252", "latin-1", "cp1251")]


def test_the_same_texts_are_found():
    rng, found = random.Random(0), 0
    ascii_words = ["the", "quick", "A", "fox.", "x", "", "\n", "0", "END"]
    for _ in range(3000):
        rare = rng.choice([CLEAN, CLEAN, BROKEN])
        words = [rng.choice(ascii_words * 6 + rare) for _ in range(rng.randrange(1, 60))]
        text = rng.choice([" ", " ", ""]).join(words)
        expected = bool(badness.is_bad(text))
        found += expected
        assert _somewhere(badness.is_bad, text) == expected, text
    assert 200 < found < 2500, "both answers occur"


def test_a_long_text_is_searched_in_parts():
    text = "a" * 5000 + " Ã " + "b" * 5000 + " é"
    parts = [run.span() for run in _BEYOND_ASCII.finditer(text)]
    assert len(parts) == 2 and sum(end - start for start, end in parts) < 10
    assert _somewhere(badness.is_bad, text) == bool(badness.is_bad(text)) is True
