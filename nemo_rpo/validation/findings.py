"""Everything that can be found in a file, how bad it is, and what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from nemo_rpo.errors import RowError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Check:
    """A kind of finding. An error stops training, a warning makes it worse, a note is worth knowing."""

    severity: Severity
    title: str
    advice: str


CHECKS: dict[str, Check] = {
    "bad_json": Check("error", "not a JSON object", "write one JSON object a line"),
    "bad_encoding": Check("error", "not valid UTF-8", "write the file again as UTF-8"),
    "unknown_layout": Check("error", "no known layout", "rename the fields, or name the layout with --layout"),
    "bad_field": Check("error", "field missing or of the wrong type", "mend the row"),
    "different_prompts": Check("error", "the two sides answer different prompts", "pair answers to one prompt"),
    "pair_id_conflict": Check("error", "one pair id for different texts", "give each pair its own id"),
    "gold_conflict": Check("error", "opposite gold labels of one pair", "decide which is gold"),
    "empty_completion": Check("error", "empty completion", "leave the pair out (--fix)"),
    "identical_completions": Check("error", "identical completions", "leave the pair out (--fix)"),
    "not_renderable": Check("error", "cannot be rendered by the tokenizer", "mend the row, or the chat template"),
    "no_chat_template": Check(
        "error",
        "messages, and a tokenizer without a chat template",
        "add chat_template.jinja to the tokenizer's folder, or give a tokenizer that has one",
    ),
    "no_prompt_token": Check("error", "prompt without a token", "leave the pair out (--fix)"),
    "identical_tokens": Check("error", "completions with identical tokens", "leave the pair out (--fix)"),
    "over_long": Check(
        "error", "completion over the sequence length", "raise the sequence length, or leave the pair out (--fix)"
    ),
    "identical_after_truncation": Check(
        "warning",
        "completions that differ only beyond the sequence length",
        "a trainer that cuts completions sees two equal ones; raise the sequence length",
    ),
    "truncated_prompt": Check(
        "warning", "prompt too long, its beginning will be cut", "raise the sequence length if the beginning matters"
    ),
    "empty_prompt": Check("warning", "empty prompt", "check that the prompt's field was read"),
    "no_text": Check(
        "warning",
        "rows without any text and without an id",
        "they count as one pair, whatever they were about; check that the fields of the texts were read",
    ),
    "prompt_repeated": Check(
        "warning",
        "completions that begin with the prompt again",
        "training takes it off them; check that it is no part of the answers",
    ),
    "rendered_before": Check(
        "warning",
        "texts that a chat template has rendered before",
        "give the messages instead, or train with the same model's tokenizer",
    ),
    "later_prompts_differ": Check(
        "warning",
        "the two sides go on with turns of their own",
        "a side holds more than one answer: judge only the first, or leave the pair out",
    ),
    "identical_but_for_space": Check(
        "warning", "completions that differ in white space only", "check that a label can mean anything here"
    ),
    "replacement_character": Check(
        "warning", "text lost in decoding (U+FFFD)", "go back to the source and decode it with its own encoding"
    ),
    "control_character": Check("warning", "control characters", "remove them, or look where they came from"),
    "mojibake": Check("warning", "text decoded with the wrong encoding", "mend it, with ftfy.fix_text for one"),
    "other_language": Check(
        "warning", "completion in another language than its prompt", "check that the prompt asks for it"
    ),
    "duplicate_vote": Check("warning", "the same label given twice", "count it once (--fix keeps the first)"),
    "contradiction": Check(
        "warning", "the same annotator labelled it both ways", "ask again, or leave both labels out (--fix)"
    ),
    "opposite_unnamed": Check(
        "warning", "opposite labels without an annotator", "name the annotators, so that one can be believed more"
    ),
    "missing_annotator": Check(
        "warning",
        "labels without an annotator among named ones",
        "name them; they share one reliability, as if one person had given them",
    ),
    "similar_annotators": Check(
        "warning", "annotator ids that differ in case or space only", "make them one if they are one person"
    ),
    "few_labels": Check(
        "warning",
        "annotators with too few labels to say anything",
        "collect more, or expect the prior in place of an estimate",
    ),
    "votes_follow_order": Check(
        "warning",
        "votes that follow the order of the responses",
        "show them in random order and record it (shown_first); nemo-rpo annotators names who follows it",
    ),
    "crowd": Check(
        "warning",
        "what the votes show together",
        "nemo-rpo annotators says more, and what gold labels would settle",
    ),
    "no_signed_vote": Check("note", "pairs without a signed label", "ties are no evidence: training leaves them out"),
}

# What is found in all votes together; its row is the first.
OF_ALL_VOTES = ("votes_follow_order", "crowd")


@dataclass(frozen=True)
class Finding:
    """One thing found. ``row`` is the 1-based line or record number in ``file``."""

    kind: str
    file: str
    row: int
    problem: str

    @property
    def where(self) -> str:
        """``file:row``, for messages."""
        return f"{self.file}:{self.row}"


class Findings:
    """Counts what is found, and keeps the first few of each kind."""

    def __init__(self, examples: int) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: dict[str, list[Finding]] = {}
        self._examples = examples

    def add(self, kind: str, file: str, row: int, problem: str) -> None:
        """Adds a finding of ``kind`` at a row."""
        check = CHECKS[kind]
        self.counts[kind] += 1
        kept = self.kept.setdefault(kind, [])
        if len(kept) < self._examples:
            kept.append(Finding(kind, file, row, problem or check.title))

    def add_error(self, error: RowError) -> None:
        """Adds what a reader refused."""
        self.add(error.kind, error.file, error.row, error.problem)

    def of(self, severity: Severity) -> list[str]:
        """The kinds of that severity that were found, in the order of :data:`CHECKS`."""
        return [kind for kind, check in CHECKS.items() if check.severity == severity and self.counts[kind]]
