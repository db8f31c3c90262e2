"""Judgements of models, and of people whose ids were not published, on two or more responses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import annotator, no_annotator
from nemo_rpo.data.rows import PreferenceRow, Text, Vote, VoteDetails

_MIDDLE = 1.5  # alpaca_eval's preference goes from 1, the first output, to 2
_RATINGS, _RANKS = ("ratings",), ("rankings", "ranks")


def alpaca_eval(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"instruction", "output_1", "output_2", "preference": 1 … 2, "annotator"}``; 1.5, and 0 of old files, are
    ties. How far the preference is from the middle, 0 to 1, is the confidence.
    """
    fields = Fields(record)
    value = fields.number("preference")
    if not (math.isnan(value) or value == 0 or 1 <= value <= 2):
        raise fields.wrong_type("preference", "from 1 (output_1) to 2 (output_2)", value)
    sign = 0 if value == 0 else (value < _MIDDLE) - (value > _MIDDLE)
    known = VoteDetails(confidence=2 * abs(value - _MIDDLE) if value else math.nan)
    votes = () if math.isnan(value) else (Vote(annotator(fields, keys, "annotator"), sign, known),)
    texts = (fields.conversation(name) for name in ("instruction", "output_1", "output_2"))
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), *texts, votes)


def distilabel(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """``{"instruction" or "prompt", "generations": […], "ratings" or "rankings": […], "model_name": judge}``; higher
    ratings and lower ranks are better. Generations without a rating are left out.
    """
    fields = Fields(record)
    prompt = fields.conversation("instruction" if "instruction" in fields.values else "prompt")
    texts = fields.conversations("generations")
    name = next((name for name in (*_RATINGS, *_RANKS) if name in fields.values), _RATINGS[0])
    ratings = fields.numbers(name) if fields.values.get(name, 0) is not None else [math.nan] * len(texts)
    if len(ratings) != len(texts):
        raise fields.error(f"field '{name}' holds {len(ratings)} numbers for {len(texts)} generations")
    if name in _RANKS:
        ratings = [-rank for rank in ratings]
    return rated(fields, keys, prompt, texts, ratings, annotator(fields, keys, "model_name"), name in _RATINGS)


def ultrafeedback(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """``{"instruction", "completions": [{"response", "overall_score" or "fine-grained_score"}, …]}``; one judge."""
    fields = Fields(record)
    no_annotator(fields, keys, "ultrafeedback")
    completions = fields.objects("completions")
    scores = [of.number(_score(of)) for of in completions]
    texts = [of.conversation("response") for of in completions]
    return rated(fields, keys, fields.conversation("instruction"), texts, scores, fields.annotator(keys), True)


def _score(completion: Fields) -> str:
    return "overall_score" if "overall_score" in completion.values else "fine-grained_score"


def nectar(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """``{"prompt", "answers": [{"answer", "rank"}, …]}``, the lowest rank the best; one judge."""
    fields = Fields(record)
    no_annotator(fields, keys, "nectar")
    answers = fields.objects("answers")
    texts, ranks = [of.conversation("answer") for of in answers], [-of.number("rank") for of in answers]
    return rated(fields, keys, fields.conversation("prompt"), texts, ranks, fields.annotator(keys), False)


def rated(
    fields: Fields,
    keys: RowFormat,
    prompt: Text,
    texts: Sequence[Text],
    ratings: Sequence[float],
    who: str | None,
    as_rewards: bool,
) -> list[PreferenceRow]:
    """A ranking where all ratings differ, else its pairs one by one, equal ones as ties; NaN is no rating.

    Args:
        as_rewards: the ratings are kept as rewards (ranks are not).
    """
    known = sorted((i for i, rating in enumerate(ratings) if rating == rating), key=lambda i: (-ratings[i], i))
    of, pair_id = (fields.record.file, fields.record.row), fields.pair_id(keys)
    if len(texts) < 2:
        raise fields.error(f"{len(texts)} responses; a preference has 2 or more")
    if len(known) < 2:
        return [PreferenceRow(*of, pair_id, prompt, texts[0], texts[1], ())]
    if len({ratings[i] for i in known}) == len(known) > 2:
        first, second, *more = (texts[i] for i in known)
        rewards = tuple(ratings[i] for i in known) if as_rewards else ()
        ranking = (*of, pair_id, prompt, first, second, (Vote(who, 1),))
        return [PreferenceRow(*ranking, further=tuple(more), rewards=rewards)]
    rows = []
    for place, i in enumerate(known):
        for j in known[place + 1 :]:
            columns = {"chosen_reward": ratings[i], "rejected_reward": ratings[j]} if as_rewards else {}
            name = pair_id if pair_id is None or len(known) == 2 else f"{pair_id}:{i}{j}"
            vote = Vote(who, int(ratings[i] > ratings[j]))
            rows.append(PreferenceRow(*of, name, prompt, texts[i], texts[j], (vote,), columns))
    return rows


def without_rating(fields: dict[str, Any]) -> Iterator[str]:
    """Generations that the judge did not rate."""
    name = next((name for name in (*_RATINGS, *_RANKS) if name in fields), None)
    ratings = fields.get(name) if name else None
    missing = sum(r is None or r != r for r in ratings) if isinstance(ratings, list) else len(fields["generations"])
    yield from ["generations without a rating"] * missing
