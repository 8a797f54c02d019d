"""Totals are of what is there, and a log gets a line now and then."""

import datasets
import pytest
import torch

from tl_weighted_pca.data import progress as progress_module
from tl_weighted_pca.data.batches import batches, count_tokens
from tl_weighted_pca.data.progress import Progress, progress_bar

LENGTHS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10], [11, 12, 13]]
TABLE = datasets.Dataset.from_dict({"input_ids": LENGTHS})
MASKED = datasets.Dataset.from_dict(
    {"input_ids": LENGTHS, "attention_mask": [[1] * (len(x) - 1) + [0] for x in LENGTHS[:]]}
)


@pytest.fixture
def terminal(monkeypatch):
    """stderr counts as a terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)


@pytest.fixture
def clock(monkeypatch):
    """The time of tqdm and of the lines, in seconds, set by the test."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    return now


FORMS = {
    "table": TABLE,
    "masked table": MASKED,
    "stream": TABLE.to_iterable_dataset(),
    "tensor": torch.arange(40).view(8, 5),
    "loader": torch.utils.data.DataLoader(torch.arange(40).view(8, 5), batch_size=3),
}


@pytest.mark.parametrize("order", ["batch by batch", "pass by pass"])
@pytest.mark.parametrize("limit", [None, 1, 7, 9, 10_000])
@pytest.mark.parametrize("form", FORMS)
def test_the_total_is_what_is_there_from_the_first_window_on(terminal, form, limit, order):
    data, passes = FORMS[form], 3
    seen = list(batches(data, 2, max_tokens=limit))
    whole = passes * sum(batch.n_tokens for batch in seen)
    by_batch = [batch for batch in seen for _ in range(passes)]
    steps = by_batch if order == "batch by batch" else seen * passes
    totals = []
    with Progress(data, 2, limit, True, passes=passes) as bar:
        for batch in steps:
            bar.advance(batch)
            totals.append(bar._bar.total)
        if form != "loader":  # whose own batches may differ in size: estimated
            assert set(totals) == {whole}
    assert bar._bar.total == bar._bar.n == whole


@pytest.mark.parametrize("limit", [None, 1, 7, 10_000])
@pytest.mark.parametrize("form", ["table", "masked table", "tensor"])
def test_what_can_be_counted_unread_is(form, limit):
    read = sum(batch.n_tokens for batch in batches(FORMS[form], 2, max_tokens=limit))
    assert count_tokens(FORMS[form], limit) == read
    assert count_tokens(FORMS["stream"], limit) is None


def test_a_log_gets_no_line_of_what_is_short_and_one_in_thirty_seconds_of_what_is_long(
    capsys, clock
):
    with progress_bar("Short", "tok", 100, True) as bar:
        for _ in range(100):
            clock[0] += 0.2
            bar.update(1)
    assert capsys.readouterr().err == ""
    with progress_bar("Long", "tok", 1000, True) as bar:
        for _ in range(1000):
            clock[0] += 0.5
            bar.update(1)
            bar.set_postfix(loss=1)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 500 / progress_module._SECONDS
    assert all("Long" in line and "\r" not in line for line in lines)
    assert "/1.00k" in lines[0]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("Bar", "tok", 10, True) as bar:
        bar.update(10)
    assert "\rBar: 100%" in capsys.readouterr().err


def test_silent_is_silent(capsys):
    with progress_bar("Bar", "step", 3, False, iterable=range(3)) as bar:
        assert list(bar) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
