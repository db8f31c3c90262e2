"""The page on data names every kind of finding, and no other."""

from __future__ import annotations

import re

from paths import ROOT

from nemo_rpo.validation import CHECKS


def test_the_page_lists_the_findings():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if re.match(r"\| (errors|warnings|notes)\b", line)]
    for line in table:
        severity = line.split("|")[1].split(",")[0].strip().removesuffix("s")
        for kind in re.findall(r"`(\w+)`", line.split("|")[2]):
            assert CHECKS[kind].severity == severity
    assert {kind for line in table for kind in re.findall(r"`(\w+)`", line.split("|")[2])} == CHECKS.keys()
