"""The file again, without what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rpo.counting import counted
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.formats import LAYOUTS, Parsed, read_parsed
from nemo_rpo.data.rankings import pairs_of
from nemo_rpo.errors import ConfigError
from nemo_rpo.validation.findings import CHECKS
from nemo_rpo.validation.scan import Validation


@dataclass
class LeftOut:
    """What a clean file lacks: ``rows``, and ``votes`` of rows that stay, by kind of finding; and the rows it has."""

    written: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    votes: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {"written": self.written, "rows": dict(self.rows), "votes": dict(self.votes)}

    def as_text(self) -> str:
        """One line a reason."""
        lines = [f"{counted(self.written, 'row')} written"]
        for what, counts in (("row", self.rows), ("vote", self.votes)):
            lines += [f"{counted(count, what)} left out: {CHECKS[kind].title}" for kind, count in counts.most_common()]
        return "\n".join(lines)


def write_clean(validation: Validation, out: Path, overwrite: bool = False) -> LeftOut:
    """Reads the files again and writes to ``out`` all rows that training can use, in their own layout and fields.

    Left out are rows and pairs with an error, a label beyond its first occurrence, both labels of an annotator who
    labelled a pair both ways, and rows whose every label is left out. Other warnings are not mended.

    Raises:
        ConfigError: files of different layouts, or an ``out`` that cannot be written.
        DataError: nothing is left.
    """
    layouts = set(validation.report.files.values())
    if len(layouts) > 1:
        raise ConfigError(f"the files have different layouts ({', '.join(sorted(layouts))}); clean them one by one")
    for layout in layouts:
        if LAYOUTS[layout].public:
            raise ConfigError(
                f"--fix does not write layout '{layout}': nemo-rpo convert … --to votes first, then --fix what it wrote"
            )
    left_out = LeftOut(rows=Counter(validation.exclusions.unreadable))
    with record_writer(out, overwrite) as write:
        number = vote = 0
        for parsed in read_parsed(validation.paths, validation.settings.keys, on_error=lambda error: None):
            fields = _clean(validation, parsed, number, vote, left_out)
            if fields is not None:
                write(fields)
                left_out.written += 1
            # Votes are counted as the first pass counted them: not those of rows it could not place.
            vote += _votes(parsed) if number not in validation.exclusions.rows else 0
            number += 1
    return left_out


def _clean(
    validation: Validation, parsed: Parsed, number: int, first_vote: int, left_out: LeftOut
) -> dict[str, Any] | None:
    exclusions = validation.exclusions
    reason = exclusions.rows.get(number) or exclusions.pairs.get(exclusions.pair_of_row[number])
    if reason is not None:
        left_out.rows[reason] += 1
        return None
    votes = range(_votes(parsed))
    dropped = {i: exclusions.votes[first_vote + i] for i in votes if first_vote + i in exclusions.votes}
    if dropped and len(dropped) == len(votes):
        left_out.rows[dropped[0]] += 1
        return None
    if not dropped or parsed.row.further:  # a ranking that repeats another in part says something new as well
        return parsed.record.fields
    left_out.votes.update(dropped.values())
    return LAYOUTS[parsed.layout].without_votes(parsed.record.fields, frozenset(dropped))


def _votes(parsed: Parsed) -> int:
    """Votes of the row; of a ranking one on each of its pairs."""
    return len(parsed.row.votes) * pairs_of(parsed.row.size)
