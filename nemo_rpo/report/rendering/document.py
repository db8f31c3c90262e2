"""A report as data: sections of paragraphs, tables, figures and quotes, which HTML and Markdown render alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Note:
    """Something that must not be overlooked: a title, what was found, and what to do; ``good`` news are no warning."""

    title: str
    text: str
    advice: str = ""
    good: bool = False


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are figures. Of a long table only ``shown`` rows are seen at once: the rest
    folds away in HTML and is left to the data files in Markdown. In HTML a click on a heading sorts all rows by it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    shown: int = 50


@dataclass(frozen=True)
class Figure:
    """An SVG drawing; ``name`` is that of its file beside a Markdown report, ``alt`` says what it shows. ``small`` ones
    need no more than half of a page's width.
    """

    name: str
    svg: str
    alt: str
    caption: str = ""
    small: bool = False


@dataclass(frozen=True)
class Quote:
    """A label quoted: the prompt, both responses side by side under their headings, and what is known of it."""

    title: str
    prompt: str
    sides: tuple[tuple[str, str], tuple[str, str]]
    facts: Sequence[str]


Block = Text | Note | Table | Figure | Quote


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The heading as a link target."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass
class Document:
    """A whole report: a title, ``facts`` (name and value) on what it is about, sections."""

    title: str
    facts: Sequence[tuple[str, str]]
    sections: list[Section]
