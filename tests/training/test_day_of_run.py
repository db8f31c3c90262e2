"""The day that a chat template prints: one for a run, whenever it is resumed."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from nemo_rpo.config.schema import TokenizerConfig
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import ConfigError
from nemo_rpo.training import day_of_run

YESTERDAY = datetime.date.today() - datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day_of_run, "on_first_rank", lambda step: step())


@pytest.fixture
def dated(tmp_path: Path) -> TokenizerSpec:
    """A tokenizer folder whose template prints a date."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    return TokenizerSpec(str(folder), use_chat_template=True)


def test_a_template_without_a_date_leaves_nothing(tmp_path: Path, dated: TokenizerSpec) -> None:
    Path(dated.folder, "chat_template.jinja").write_text("{{ messages }}")
    day_of_run.record_date(tmp_path, dated, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_a_resumed_run_keeps_its_day_and_a_fresh_one_takes_today(tmp_path: Path, dated: TokenizerSpec) -> None:
    settings = TokenizerConfig()
    assert day_of_run.template_date(settings, tmp_path) is None, "other commands leave nothing behind"
    day_of_run.record_date(tmp_path, dated, fresh=False)
    assert day_of_run.template_date(settings, tmp_path) == datetime.date.today()
    (tmp_path / ".template_date").write_text(YESTERDAY.isoformat())
    day_of_run.record_date(tmp_path, dated, fresh=False)
    assert day_of_run.template_date(settings, tmp_path) == YESTERDAY
    day_of_run.record_date(tmp_path, dated, fresh=True)
    assert day_of_run.template_date(settings, tmp_path) == datetime.date.today()


def test_the_setting_comes_first_and_must_be_a_date(tmp_path: Path, dated: TokenizerSpec) -> None:
    day_of_run.record_date(tmp_path, dated, fresh=True)
    assert day_of_run.template_date(TokenizerConfig(date="2024-07-26"), tmp_path) == datetime.date(2024, 7, 26)
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.date is 'today'; it must be a date, YYYY-MM-DD"):
        day_of_run.template_date(TokenizerConfig(date="today"), tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        day_of_run.record_date(tmp_path / "absent", dated, fresh=True)
