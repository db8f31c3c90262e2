"""Public sets without ids: HelpSteer2 and 3, WebGPT, SHP. A place in a list of labels is no person."""

from __future__ import annotations

import math

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import no_annotator
from nemo_rpo.data.layouts.public.judges import rated
from nemo_rpo.data.rows import PreferenceRow, Vote, VoteDetails


def helpsteer3(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"context": messages, "response1", "response2", "overall_preference": -3 … 3, "individual_preference"}``,
    negative for the first. Each individual preference is a label without an annotator; 0 is a tie.
    """
    fields = Fields(record)
    no_annotator(fields, keys, "helpsteer3")
    scores = [fields.number("overall_preference")]
    if fields.values.get("individual_preference"):
        scores = [of.number("score") for of in fields.objects("individual_preference")]
    votes = tuple(_by_score(fields, keys, -score) for score in scores if not math.isnan(score))
    texts = (fields.conversation(name) for name in ("context", "response1", "response2"))
    topic = fields.identity("domain", required=False)
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), *texts, votes, topic=topic)


def helpsteer2_preference(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "response_1", "response_2", "preference_strength": -3 … 3}``, negative for the first."""
    fields = Fields(record)
    no_annotator(fields, keys, "helpsteer2_preference")
    score = fields.number("preference_strength")
    votes = () if math.isnan(score) else (_by_score(fields, keys, -score),)
    texts = (fields.conversation(name) for name in ("prompt", "response_1", "response_2"))
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), *texts, votes)


def helpsteer2(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """The ``utterances`` that answer one ``prompt`` (rows that follow one another), each with ``response`` and
    ``helpfulness``, which is kept as the reward; the more helpful one is better.
    """
    fields = Fields(record)
    rows = fields.objects("utterances")
    no_annotator(rows[0], keys, "helpsteer2")
    texts, scores = [of.conversation("response") for of in rows], [of.number("helpfulness") for of in rows]
    return rated(rows[0], keys, rows[0].conversation("prompt"), texts, scores, rows[0].annotator(keys), True)


def webgpt(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"question": {"full_text"}, "answer_0", "answer_1", "score_0", "score_1"}``; the higher score is better."""
    fields = Fields(record)
    no_annotator(fields, keys, "webgpt")
    question = fields.require("question")
    asked = Fields(record, question, "question.") if isinstance(question, dict) else fields
    prompt = asked.text("full_text") if isinstance(question, dict) else fields.conversation("question")
    difference = fields.number("score_0") - fields.number("score_1")
    votes = () if math.isnan(difference) else (_by_score(fields, keys, difference),)
    texts = (fields.conversation(name) for name in ("answer_0", "answer_1"))
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), prompt, *texts, votes)


def shp(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"history", "human_ref_A", "human_ref_B", "labels": 1 for A, 0 for B, "score_ratio"}``: readers' votes."""
    fields = Fields(record)
    no_annotator(fields, keys, "shp")
    label = fields.integer("labels")
    if label not in (0, 1):
        raise fields.wrong_type("labels", "0 or 1", label)
    vote = Vote(fields.annotator(keys), 2 * label - 1, VoteDetails(strength=fields.number("score_ratio")))
    texts = (fields.conversation(name) for name in ("history", "human_ref_A", "human_ref_B"))
    topic = fields.identity("domain", required=False)
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), *texts, (vote,), topic=topic)


def _by_score(fields: Fields, keys: RowFormat, score: float) -> Vote:
    """The vote of a score that is positive for the first response."""
    return Vote(fields.annotator(keys), (score > 0) - (score < 0), VoteDetails(strength=abs(score)))
