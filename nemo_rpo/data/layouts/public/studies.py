"""Public studies that say who judged: Community Alignment, PRISM, summarize-from-feedback, CoVal."""

from __future__ import annotations

import re

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import annotator
from nemo_rpo.data.layouts.public.best import best_of
from nemo_rpo.data.layouts.public.judges import rated
from nemo_rpo.data.rows import Messages, PreferenceRow, Vote, VoteDetails

_TURNS, _LETTERS = ("first", "second", "third", "fourth"), "abcd"
_ENDS = ("prompt", "preferred_response", *(f"response_{letter}" for letter in _LETTERS))
COMMUNITY_ALIGNMENT = frozenset(
    ("annotator_id", "assigned_lang", *(f"{turn}_turn_{end}" for turn in _TURNS for end in _ENDS))
)
SUMMARIES = frozenset(("info", "summaries", "choice", "worker", "extra"))
_RANKING = re.compile(r"\s*([A-Za-z0-9])\s*(?:[>=~]\s*[A-Za-z0-9]\s*)+")
_RANKINGS = ("ranking", "rankings", "ranking_personal", "ranking_world")
COVAL = frozenset(("annotator_id", "prompt", "responses", *_RANKINGS))


def community_alignment(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """A conversation of up to four turns with four responses each, of which the preferred one goes on.

    A turn is three pairs: the preferred response and each of the others.
    """
    fields = Fields(record)
    who, topic = annotator(fields, keys, "annotator_id"), fields.identity("assigned_lang", required=False)
    rows, said = [], []
    for turn in _TURNS:
        if not fields.values.get(f"{turn}_turn_prompt"):
            break
        said.append({"role": "user", "content": fields.text(f"{turn}_turn_prompt")})
        names = [f"{turn}_turn_response_{letter}" for letter in _LETTERS]
        names = [name for name in names if fields.values.get(name) is not None]
        texts = [_answer(fields.text(name)) for name in names]
        preferred = fields.values.get(f"{turn}_turn_preferred_response")
        best = _place(fields, f"{turn}_turn_preferred_response", names) if preferred else None
        if len(texts) > 1:
            rows += best_of(fields, keys, list(said), texts, best, lambda sign: Vote(who, sign), topic)
        if best is None:
            break
        said += texts[best]
    if not rows:
        raise fields.error("no turn has a prompt and two responses")
    return rows


def prism(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """The ``utterances`` of one conversation (:func:`nemo_rpo.data.layouts.public.gather.conversations` brings them
    together): ``user_id``, ``turn``, ``user_prompt``, ``model_response``, ``score``, ``if_chosen``.

    Of each turn the chosen response and each of the others; how much higher its score is, is the strength, the scores
    are the rewards. The chosen response goes on.
    """
    fields = Fields(record)
    turns: dict[int, list[Fields]] = {}
    for utterance in fields.objects("utterances"):
        turns.setdefault(utterance.integer("turn"), []).append(utterance)
    rows, said = [], []
    for _, of in sorted(turns.items()):
        said = [*said, {"role": "user", "content": of[0].text("user_prompt")}]
        chosen = [i for i, utterance in enumerate(of) if utterance.flag("if_chosen")]
        best = chosen[0] if len(chosen) == 1 else None
        texts = [_answer(utterance.text("model_response")) for utterance in of]
        if len(of) > 1:
            rows += _scored(of, keys, said, texts, best)
        if best is None:
            break
        said = [*said, *texts[best]]
    if not rows:
        raise fields.error("a conversation without two responses to compare")
    return rows


def _scored(
    of: list[Fields], keys: RowFormat, said: Messages, texts: list[Messages], best: int | None
) -> list[PreferenceRow]:
    scores = [utterance.number("score") for utterance in of]
    who = annotator(of[0], keys, "user_id")
    rows = best_of(of[0], keys, said, texts, best, lambda sign: Vote(who, sign))
    if best is None:
        return rows
    told = []
    for row, other in zip(rows, (i for i in range(len(of)) if i != best), strict=True):
        first, second = sorted((best, other))
        columns = {"chosen_reward": scores[first], "rejected_reward": scores[second]}
        difference = scores[best] - scores[other]
        votes = row.votes
        if difference >= 0:
            votes = (votes[0]._replace(details=VoteDetails(strength=difference)),)
        known = {name: value for name, value in columns.items() if value == value}
        told.append(PreferenceRow(row.file, row.row, row.pair_id, said, row.chosen, row.rejected, votes, known))
    return told


def summaries(record: Record, keys: RowFormat) -> PreferenceRow:
    """summarize-from-feedback: ``{"info": {"post" or "article", …}, "summaries": [{"text"}, {"text"}], "choice": 0 | 1,
    "worker", "extra": {"confidence"}}``.
    """
    fields = Fields(record)
    info = fields.require("info")
    if not isinstance(info, dict):
        raise fields.wrong_type("info", "an object", info)
    first, second = (of.text("text") for of in _two(fields, "summaries"))
    of_info = Fields(record, info, "info.")
    extra = fields.values.get("extra") if isinstance(fields.values.get("extra"), dict) else {}
    known = VoteDetails(confidence=Fields(record, extra, "extra.").number("confidence"))
    votes = ()
    if fields.values.get("choice") is not None:
        choice = fields.integer("choice")
        if choice not in (0, 1):
            raise fields.wrong_type("choice", "0 or 1", choice)
        votes = (Vote(annotator(fields, keys, "worker"), 1 - 2 * choice, known),)
    topic = of_info.identity("subreddit", required=False)
    of = (record.file, record.row, fields.pair_id(keys), _to_summarise(of_info), first, second, votes)
    return PreferenceRow(*of, topic=topic)


def _to_summarise(info: Fields) -> str:
    if info.values.get("article"):
        return f"{info.text('article')}\n\nTL;DR:"
    head = "".join(
        f"{name.upper()}: {prefix}{info.text(name)}\n"
        for name, prefix in (("subreddit", "r/"), ("title", ""))
        if info.values.get(name)
    )
    return f"{head}POST: {info.text('post')}\nTL;DR:"


def coval(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """``{"annotator_id", "prompt", "responses": [{"label": "A", "text"}, …], "ranking": "A>B>C=D"}``; = is a tie."""
    fields = Fields(record)
    texts = {}
    for place, response in enumerate(fields.objects("responses")):
        name = next((n for n in ("label", "response_index", "id") if n in response.values), None)
        letter = str(response.values[name]).strip().upper() if name else chr(ord("A") + place)
        body = next((n for n in ("text", "content", "response", "messages") if n in response.values), "text")
        texts[letter] = response.conversation(body)
    name = next((name for name in _RANKINGS if fields.values.get(name)), "ranking")
    said = fields.text(name).upper()
    if _RANKING.fullmatch(said) is None:
        raise fields.wrong_type(name, "a ranking such as 'A>B>C=D'", fields.values[name])
    rank, ranks = 0, {}
    for sign, letter in re.findall(r"([>=~]?)\s*([A-Z0-9])", said):
        rank += sign == ">"
        ranks[letter] = rank
    if unknown := sorted(ranks.keys() - texts.keys()):
        raise fields.error(f"field '{name}' ranks {', '.join(unknown)}, and the responses are {', '.join(texts)}")
    prompt = fields.conversation("prompt")
    who = annotator(fields, keys, "annotator_id")
    return rated(fields, keys, prompt, [texts[k] for k in ranks], [-float(r) for r in ranks.values()], who, False)


def _two(fields: Fields, name: str) -> list[Fields]:
    found = fields.objects(name)
    if len(found) != 2:
        raise fields.error(f"field '{name}' holds {len(found)} objects; a comparison has 2")
    return found


def _answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def _place(fields: Fields, name: str, names: list[str]) -> int:
    """The place of the response that a letter, or a name that ends in one, means."""
    letter = fields.text(name).strip().lower()[-1:]
    found = next((i for i, of in enumerate(names) if of[-1] == letter), None)
    if found is None:
        raise fields.wrong_type(name, f"one of {', '.join(of[-1] for of in names)}", fields.values[name])
    return found
