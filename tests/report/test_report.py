"""The report: what it says is what is true of the run, and the page stands alone."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'nemo-rpo[report]'")
pytest.importorskip("pyarrow", reason="the report needs pyarrow: pip install 'nemo-rpo[report]'")

from nemo_rpo.cli import main
from nemo_rpo.errors import DataError
from nemo_rpo.report.advice import verdict
from nemo_rpo.report.build import ReportSettings, build_report
from nemo_rpo.report.rendering import plots
from nemo_rpo.report.rendering.document import Document, Figure, Note, Quote, Section, Table, Text
from nemo_rpo.report.rendering.html import as_html
from nemo_rpo.report.rendering.markdown import as_markdown
from nemo_rpo.report.run import Annotators, Run, read_run
from nemo_rpo.training.outputs import record

from .runs import STEPS, Crowd, make_run

ETA = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Crowd]:
    folder = tmp_path_factory.mktemp("report") / "run"
    return folder, make_run(folder, ETA)


@pytest.fixture(scope="module")
def run(made: tuple[Path, Crowd]) -> Run:
    return read_run(made[0])


@pytest.fixture(scope="module")
def document(run: Run) -> Document:
    return build_report(run)


def section(document: Document, title: str) -> Section:
    return next(section for section in document.sections if section.title == title)


def blocks(document: Document, title: str, kind: type) -> list:
    return [block for block in section(document, title).blocks if isinstance(block, kind)]


def test_the_adversary_is_first(document: Document, made: tuple[Path, Crowd]) -> None:
    [table] = blocks(document, "Annotators", Table)
    assert table.rows[0][0] == "w0007" and len(table.rows) == len(ETA)
    etas = [float(row[2]) for row in table.rows]
    assert etas == sorted(etas) and etas[0] < 0.3
    for row in table.rows:
        low, high = map(float, row[3].split("–"))
        assert low < float(row[2]) < high
    crowd = made[1]
    counts = np.bincount(crowd.annotator)
    shown = {row[0]: int(row[1].replace(",", "")) for row in table.rows}
    assert shown == {f"w{k:04d}": n for k, n in enumerate(counts)}
    assert "w0007" in section(document, "In short").blocks[-1].text


def test_doubtful_labels_are_wrong_ones(document: Document, run: Run, made: tuple[Path, Crowd]) -> None:
    crowd = made[1]
    wrong, doubt = ~crowd.right, 1 - run.labels.w_last
    ranks = np.argsort(np.argsort(doubt))
    auroc = (ranks[wrong].mean() - (wrong.sum() - 1) / 2) / (~wrong).sum()
    assert auroc > 0.9
    quotes = blocks(document, "Most doubtful labels", Quote)
    assert len(quotes) == 20
    by_pair = {crowd.ids[i]: i for i in range(len(crowd))}
    givers = []
    for quote in quotes:
        pair = by_pair[quote.title.split()[-1]]
        giver = re.match(r"preferred by (w\d+)", quote.sides[0][0])[1]
        [row] = [v for v in np.flatnonzero(crowd.pair == pair) if f"w{crowd.annotator[v]:04d}" == giver]
        assert not crowd.right[row]
        givers.append(giver)
        # The response on the left is the one that this annotator voted for.
        assert quote.sides[0][1].split()[-1].rstrip("ab") == str(pair)
        assert quote.sides[0][1][-1] != quote.sides[1][1][-1]
        assert f"preferred by {giver}" in quote.sides[0][0]
    assert max(givers.count(giver) for giver in givers) <= 3


def test_quotes_are_the_right_way_round(run: Run, document: Document, made: tuple[Path, Crowd]) -> None:

    votes = {}
    for line in Path(made[1].file).read_text().splitlines():
        row = json.loads(line)
        votes |= {(row["pair_id"], vote["annotator"]): row[f"response_{vote['vote']}"] for vote in row["votes"]}
    for quote in blocks(document, "Most doubtful labels", Quote):
        giver = re.match(r"preferred by (w\d+)", quote.sides[0][0])[1]
        assert quote.sides[0][1] == votes[quote.title.split()[-1], giver]


def test_accuracy_is_that_of_the_margins(document: Document, run: Run) -> None:
    table = blocks(document, "Policy", Table)[0]
    right = (run.held_out.gold * run.held_out.delta > 0).mean()
    assert table.rows[0][2].startswith(f"{right:.3f} (")
    last = next(row for row in table.rows if row[0] == "training, last sight")
    assert last[2].startswith(f"{(run.labels.sign * run.labels.delta_last > 0).mean():.3f} (")


def test_shared_taste_is_no_noise(tmp_path: Path) -> None:
    """Two annotators who want the opposite on half of the pairs are named together; independent ones are not."""
    make_run(tmp_path / "run", [0.9] * 6 + [0.9, 0.9], pairs=600, taste=2)
    [table] = blocks(build_report(read_run(tmp_path / "run")), "Taste rather than noise", Table)
    assert [set(row[0].split(", ")) for row in table.rows] == [{"w0006", "w0007"}]
    make_run(tmp_path / "noise", [0.9] * 6 + [0.5, 0.5], pairs=600)
    assert not blocks(build_report(read_run(tmp_path / "noise")), "Taste rather than noise", Table)


def test_warnings_say_what_to_do(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [0.2] * 5, pairs=100)
    notes = blocks(build_report(read_run(tmp_path / "run")), "Warnings", Note)
    assert notes[0].title == "Most labels come from annotators rated below one half"
    assert "Do not swap" in notes[0].advice


def test_the_first_lines_say_what_to_do(document: Document, run: Run) -> None:
    """The adversary is named as one, and a policy that is right is kept."""
    notes = blocks(document, "In short", Note)
    assert notes[0].good and notes[0].title == "The policy can be kept: it is better than chance"
    [inverted] = [note for note in notes if note.title == "Labels the wrong way round"]
    assert inverted.text.startswith("w0007 is surely wrong")
    rows = {row[0]: row[-1] for row in blocks(document, "Annotators", Table)[0].rows}
    assert rows["w0007"] == "retrain" and set(rows.values()) <= {"trust", "watch", "retrain", "too few labels to say"}


def test_coin_flippers_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [0.9] * 8 + [0.5], pairs=600)
    [note] = [n for n in verdict(read_run(tmp_path / "run")) if n.title == "Annotators to retrain"]
    assert note.text == "w0008 is right about as often as a flipped coin."


def test_a_policy_no_better_than_chance_is_never_kept(run: Run) -> None:
    """Right half of the time, or less often; with held-out labels or without; and no page says that nothing warns."""
    n = len(run.held_out.delta)
    for right, title in ((0.5, "no better than chance"), (0.3, "worse than chance")):
        size = np.where(np.random.default_rng(0).permutation(n) < right * n, 1.0, -1.0)
        held_out = dataclasses.replace(run.held_out, delta=size * run.held_out.truth)
        document = build_report(dataclasses.replace(run, held_out=held_out), ReportSettings(texts=False))
        [first, *_] = blocks(document, "In short", Note)
        assert title in first.title and not first.good and "Do not use this policy" in first.advice
        assert title in blocks(document, "Warnings", Note)[0].title
        assert not any("None" in text.text for text in blocks(document, "Warnings", Text))
    m = len(run.labels)
    sign = np.where(np.random.default_rng(0).permutation(m) < m / 2, 0.1, -0.1)
    labels = dataclasses.replace(run.labels, delta_first=sign * run.labels.sign)
    alone = dataclasses.replace(run, labels=labels, held_out=None)
    assert "no better than chance" in verdict(alone)[0].title


def test_too_few_labels_are_said_to_be_too_few(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [0.8] * 120, pairs=200)
    assert "Collect more labels" in [note.title for note in verdict(read_run(tmp_path / "run"))]


def test_groups_of_the_user(run: Run, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("annotator,group\nw0000,expert\nw0001,expert\nw0007,crowd\n")
    [table] = blocks(build_report(run, ReportSettings(groups=groups)), "Labels", Table)
    assert [row[0] for row in table.rows] == ["crowd", "expert", "(no group)", "all"]
    assert [row[1] for row in table.rows] == ["1", "2", "5", "8"]


def test_gold_labels_and_drift_stand_in_the_report(
    made: tuple[Path, Crowd], tmp_path: Path, document: Document
) -> None:
    """What ``label_model.json`` holds of a finished run: estimates side by side, the best first; and a curve each."""
    assert not [figure for figure in blocks(document, "Annotators", Figure) if figure.name == "drift"]
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    place = [0.0, 0.5, 1.0]
    curve = {"curve": [0.9, 0.8, 0.6], "low": [0.8, 0.7, 0.4], "high": [0.95, 0.9, 0.7]}
    judged = {
        name: {"right": right, "low": right - 0.05, "high": right + 0.02, "anchors": 80}
        for name, right in (("majority", 0.8), ("EM with the policy", 0.9), ("EM without a model", 0.85))
    }
    drift = {"p_value": 0.003, "found": True, "place": place}
    drift["annotators"] = [{"id": f"tired <{i}> $", "surely": i == 0, **curve} for i in range(5)]
    (folder / "label_model.json").write_text(json.dumps({"judged": judged, "drift": drift}))
    found = build_report(read_run(folder))
    table = next(table for table in blocks(found, "Labels", Table) if table.header[0] == "estimate")
    assert [row[0] for row in table.rows] == ["EM with the policy", "EM without a model", "majority"]
    assert table.rows[0][1:] == ["80", "90.0% (85.0% to 92.0%)"]
    figure = next(figure for figure in blocks(found, "Annotators", Figure) if figure.name == "drift")
    ElementTree.fromstring(figure.svg)
    assert figure.svg.count("tired &lt;") == 5
    said = [text.text for text in blocks(found, "Annotators", Text)]
    assert any("p = 0.003" in text and "tired <0> $." in text for text in said)
    (folder / "label_model.json").write_text('{"judged": ')
    with pytest.raises(DataError, match=r"label_model\.json is damaged"):
        read_run(folder)


def test_without_the_data_there_are_no_quotes(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(made[1].file, str(tmp_path / "gone.jsonl")))
    document = build_report(read_run(folder))
    assert not blocks(document, "Most doubtful labels", Quote)
    assert any("gone.jsonl does not exist" in text.text for text in blocks(document, "Most doubtful labels", Text))
    moved = ReportSettings(data=(Path(made[1].file),))
    assert len(blocks(build_report(read_run(folder), moved), "Most doubtful labels", Quote)) == 20


class _Page(html.parser.HTMLParser):
    """Tags in order, and whatever could ask for another file."""

    VOID = frozenset(("meta", "br", "hr", "img", "use", "path", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(made: tuple[Path, Crowd], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(made[0]), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out/report.html"), str(tmp_path / "out/report.md")]
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links) and page.links
    assert page.tags.count("script") == 1 and "url(http" not in text and "@import" not in text
    assert page.tags.count("svg") == 7 and "<b>Question" not in text and "&lt;b&gt;Question" in text
    (tmp_path / "version.2").mkdir()
    assert main(["report", str(made[0]), "--out", str(tmp_path / "version.2")]) == 0
    assert (tmp_path / "version.2/report.html").read_text(encoding="utf-8") == text


def test_markdown_says_the_same(made: tuple[Path, Crowd], document: Document, tmp_path: Path) -> None:
    assert main(["report", str(made[0]), "--out", str(tmp_path / "out"), "--format", "markdown"]) == 0
    assert not (tmp_path / "out/report.html").exists()
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [s.title for s in document.sections]
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(drawn) == sum(isinstance(block, Figure) for s in document.sections for block in s.blocks)
    assert all((tmp_path / "out" / path).read_text(encoding="utf-8").startswith("<svg") for path in drawn)


def test_a_crowd_of_thousands(tmp_path: Path) -> None:
    eta = np.random.default_rng(0).beta(6, 2, 3815).tolist()
    make_run(tmp_path / "run", eta, pairs=8000, per_pair=5)
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 5e6 and page.count("<td>w") >= 3800
    assert "$" not in "".join(re.findall("<text.*?</text>", page))  # ticks are numbers, no mathematics to be set


def browse(page: str, folder: Path) -> tuple[str, set[str]]:
    """What the browser says while it opens a page, and who asked for the requests that it makes beside its own."""
    names = (os.environ.get("NEMO_RPO_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (NEMO_RPO_CHROMIUM names one)")
    log = folder / "net.json"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    command += [f"--log-net-log={log}", "--enable-logging=stderr", f"--screenshot={folder}/page.png", page]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and (folder / "page.png").stat().st_size > 1000
    asked = set(re.findall(r'"initiator":"([^"]*)"', log.read_text())) - {"not an origin"}
    return result.stderr, asked


def test_a_browser_opens_it_without_a_word(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    """And a page that does ask for a file is found out by the same means."""
    assert main(["report", str(made[0]), "--out", str(tmp_path / "out")]) == 0
    said, asked = browse((tmp_path / "out/report.html").as_uri(), tmp_path)
    assert "CONSOLE" not in said and not asked
    (tmp_path / "asks.html").write_text('<img src="http://127.0.0.1:9/"><script>console.error("no")</script>')
    said, asked = browse((tmp_path / "asks.html").as_uri(), tmp_path)
    assert "CONSOLE" in said and asked


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_sort_and_nothing_is_wider_than_the_page(made: tuple[Path, Crowd], tmp_path: Path, width: int) -> None:
    """By a click on a heading, rows that are folded away too; and no cell of ids breaks by letter."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browser = next(filter(None, map(shutil.which, (os.environ.get("NEMO_RPO_CHROMIUM", ""), "chromium"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (NEMO_RPO_CHROMIUM names one)")
    crowd = tmp_path / "crowd"
    make_run(crowd, np.linspace(0.4, 0.95, 60).tolist(), pairs=300)
    assert main(["report", str(crowd)]) == 0
    said: list[str] = []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((crowd / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cells = page.locator("#annotators tbody td:first-child").evaluate_all("all => all.map(td => td.offsetHeight)")
        assert len(cells) == 60 and max(cells[:25]) < 40

        def labels() -> list[int]:
            column = page.locator("#annotators tbody td:nth-child(2)").all_text_contents()
            return [int(text.replace(",", "")) for text in column]

        head = page.locator("#annotators th").nth(1)
        before = labels()
        head.click()
        assert labels() == sorted(before) != before
        head.press("Enter")
        assert labels() == sorted(before, reverse=True)
        opened.close()
    assert not said


def test_a_plain_loss_has_a_policy_and_no_annotators(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(made[0], folder)
    config = (folder / "config.yaml").read_text()
    config = config.replace("    enabled: true\n", "    enabled: false\n")
    (folder / "config.yaml").write_text(config.replace("    reference_from: null\n", "    reference_from: start/hf\n"))
    for name in ("annotators.parquet", "posteriors.parquet"):
        (folder / name).unlink()
    document = build_report(read_run(folder))
    assert [section.title for section in document.sections] == ["In short", "Policy", "How to read this"]
    facts = dict(document.facts)
    assert "every label believed" in facts["loss"]
    assert facts["reference"] == "start/hf" and "previous iterate" not in facts
    assert main(["report", str(folder)]) == 0


def test_without_held_out_pairs_calibration_is_that_of_first_sight(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    (folder / "validation.parquet").unlink()
    [figure] = [f for f in blocks(build_report(read_run(folder)), "Policy", Figure) if f.name == "calibration"]
    assert "training labels at first sight (there is no held-out record)" in figure.caption


def test_a_run_that_was_stopped_says_so(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    """Steps after the last checkpoint are in ``metrics.jsonl``, and in no table."""
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 45, "split": "train", "loss": 0.5, "acc": 0.5, "margin": 0.1}\n{"step": 46, "spl')
    [note] = blocks(build_report(read_run(folder)), "Warnings", Note)
    assert note.text == "The run took 45 steps, and its last checkpoint is of step 40; this report is of that one."


def test_no_texts_leave_the_house(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    assert main(["report", str(made[0]), "--no-texts", "--out", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "word word" not in text and "Question" not in text and "Texts were left out" in text


@pytest.mark.filterwarnings("error")
def test_labels_that_were_never_seen_are_left_out(made: tuple[Path, Crowd], tmp_path: Path) -> None:
    """As at a checkpoint in the first epoch."""
    from pyarrow import parquet

    folder, crowd = tmp_path / "run", made[1]
    shutil.copytree(made[0], folder)
    seen = np.full((len(crowd), 3), np.nan, np.float32)
    seen[:100] = 1.0
    record.write_posteriors(folder, 3, crowd, seen, np.zeros(len(ETA)), 1.0)
    table = parquet.read_table(folder / "posteriors.parquet")
    assert all(table[name].null_count == 900 for name in ("delta_first", "w_first", "delta_last", "w_last", "flipped"))
    document = build_report(read_run(folder))
    assert any("900 labels were never seen" in text.text for text in blocks(document, "Labels", Text))
    [groups] = blocks(document, "Labels", Table)
    assert groups.rows[-1][2] == "300"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e4, np.inf, np.nan])
def test_margins_that_have_run_away(made: tuple[Path, Crowd], tmp_path: Path, size: float) -> None:
    """±1e4 on every pair, and pairs whose margin is no number: the page is made, and says that they are too large."""
    folder, crowd = tmp_path / "run", made[1]
    shutil.copytree(made[0], folder)
    delta = (1e4 * crowd.gold).astype(np.float32)
    delta[::5] = size * crowd.gold[::5]
    seen = np.stack((delta, np.full(len(crowd), 0.9, np.float32), delta), 1)
    seen[~np.isfinite(delta)] = np.nan  # the first sight is of finite margins alone
    seen[:, 2] = delta
    record.write_posteriors(folder, STEPS, crowd, seen, np.full(len(ETA), 2.0), 1.0)
    record.write_validation(folder, STEPS, {"": (crowd, delta)})
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "The posteriors decide, they no longer weigh" in text and "nan" not in text
    assert ("were never seen" in text) == (not np.isfinite(size))


def test_distrust_that_goes_with_length_is_a_warning(run: Run, document: Document) -> None:
    """Every distrusted label on the shorter response, every believed one on the longer."""
    assert not blocks(document, "Warnings", Note)
    prefers_chosen = (run.labels.sign > 0) != run.labels.distrusted
    tokens = np.where(prefers_chosen[:, None], [[20, 10]], [[10, 20]])
    skewed = dataclasses.replace(run, labels=dataclasses.replace(run.labels, tokens=tokens))
    found = build_report(skewed)
    [note] = blocks(found, "Warnings", Note)
    assert note.title == "Distrust goes with length" and "0% of the time, believed ones 100%" in note.text
    assert "1 warning below" in section(found, "In short").blocks[-1].text


def test_ids_of_any_characters_make_valid_figures_and_pages() -> None:
    ids = ["a\x1b[31m", "\x00", "$x_1$ and $", "<b>&", "w\x0b\ufffe", "\u0085"]
    flat, start = np.full(len(ids), 0.7), np.full(len(ids), 0.9)
    way, no_groups = np.tile(flat[:, None], 3).astype(np.float32), np.empty((len(ids), 0))
    annotators = Annotators(ids, np.full(len(ids), 20), flat, flat / 10, start, np.arange(3), way, no_groups)
    for svg in (plots.annotator_intervals(annotators), plots.trajectories(annotators)):
        drawn = ElementTree.fromstring(svg)
        assert "$x_1$ and $" in "".join(drawn.itertext())
    table = Table(["annotator"], [[name] for name in ids])
    page = Document("t", [], [Section("s", [table])])
    for text in (as_html(page), as_markdown(page, "figures")):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text) and "x1b" in text
