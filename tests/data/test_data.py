"""Whatever form the data have, the same sequences come out, and padding changes nothing."""

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches, count_batches, count_tokens
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.data.sharding import shard

ROWS = torch.arange(5 * 4).view(5, 4)
LENGTHS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10], [11, 12, 13]]

FORMS = {
    "tensor": ROWS,
    "loader": DataLoader(TensorDataset(ROWS), batch_size=2),
    "list of tensors": list(ROWS.split(2)),
    "generator": None,
    "input_ids": [{"input_ids": rows} for rows in ROWS.split(2)],
    "tokens": [{"tokens": rows} for rows in ROWS.split(2)],
    "dataset": datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}),
    "torch dataset": datasets.Dataset.from_dict({"tokens": ROWS.tolist()}).with_format("torch"),
    "stream": datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}).to_iterable_dataset(),
    "loader of a dataset": DataLoader(
        datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}).with_format("torch"), batch_size=2
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_sequences(form):
    data = FORMS[form] if form != "generator" else (rows for rows in ROWS.split(2))
    found = list(batches(data, 2))
    assert torch.equal(torch.cat([batch.inputs for batch in found]), ROWS)
    assert all(batch.mask is None for batch in found)
    assert torch.cat([batch.sequence_index for batch in found]).tolist() == list(range(5))


def test_rows_of_many_lengths_are_grouped_and_keep_their_place():
    found = list(batches(datasets.Dataset.from_dict({"input_ids": LENGTHS}), 2))
    assert [batch.inputs.shape[1] for batch in found] == [2, 3, 4]  # hardly any padding
    for batch in found:
        for row, index in enumerate(batch.sequence_index.tolist()):
            keep = slice(None) if batch.mask is None else batch.mask[row]
            assert batch.inputs[row][keep].tolist() == LENGTHS[index]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_row_of_one_token_is_padded_also_alone_in_the_last_window(batch_size):
    rows = [[1, 2, 3]] * 64 + [[4]]
    for batch in batches(datasets.Dataset.from_dict({"input_ids": rows}), batch_size):
        for row in (batch.sequence_index == 64).nonzero().flatten():
            assert batch.inputs.shape[1] > 1 and batch.mask[row].sum() == 1


def test_a_stream_is_grouped_in_windows_and_not_read_whole():
    read = []

    def rows():
        for i in range(1000):
            read.append(i)
            yield {"input_ids": list(range(1 + i % 7))}

    stream = datasets.IterableDataset.from_generator(rows)
    next(batches(stream, 2))
    assert len(read) < 300


@pytest.mark.parametrize(("limit", "n_batches"), [(1, 1), (8, 1), (11, 1), (12, 2), (99, 3)])
def test_max_tokens_stops_before_it_is_exceeded(limit, n_batches):
    assert len(list(batches(ROWS, 2, max_tokens=limit))) == n_batches


def test_max_tokens_counts_real_tokens_alone():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    data = [{"input_ids": ROWS[:2], "attention_mask": mask}] * 3
    assert len(list(batches(data, 2, max_tokens=6))) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [0]), (4, [0, 1]), (7, [0, 1]), (8, [0, 1, 2])]
)
def test_max_tokens_takes_the_first_sequences_and_not_the_shortest(batch_size, limit, expected):
    dataset = datasets.Dataset.from_dict({"input_ids": LENGTHS})
    found = [b.sequence_index for b in batches(dataset, batch_size, max_tokens=limit)]
    assert sorted(torch.cat(found).tolist()) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_moment(model, tokens, side):
    lengths, longest = [20, 13, 7, 20, 5], 20
    rows = [row[:n] for row, n in zip(tokens, lengths, strict=False)]
    inputs = torch.zeros(5, longest, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), None) if side == "left" else slice(len(row))
        inputs[i, at], mask[i, at] = row, 1
    points = ["blocks.1.hook_resid_post"]
    options = {"progress": False, "positions": slice(1, None)}
    padded = wpca.collect(model, [{"input_ids": inputs, "attention_mask": mask}], points, **options)
    plain = wpca.collect(model, [row[None] for row in rows], points, **options)
    dataset = datasets.Dataset.from_dict({"input_ids": [row.tolist() for row in rows]})
    grouped = wpca.collect(model, dataset, points, batch_size=3, **options)
    for other in (padded, grouped):
        a, b = other[points[0]], plain[points[0]]
        assert a.n_tokens == b.n_tokens == sum(lengths) - 5
        for kind in ("activation", "gradient", "weighted"):
            x, y = getattr(a, kind).second, getattr(b, kind).second
            assert float((x - y).norm()) < 1e-5 * float(y.norm())


def test_a_file_that_is_damaged_in_the_middle_is_told_with_the_place(tmp_path):
    rows = ['{"input_ids": [1, 2, 3]}\n'] * 3
    (tmp_path / "rows.jsonl").write_text("".join([*rows, '{"input_ids": [1, 2']))
    stream = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True
    )
    with pytest.raises(ValueError, match="Row [0-3] of the data cannot be read: JSON parse error"):
        list(batches(stream, 2))


def test_the_size_of_data_is_told_unread_where_it_can_be():
    assert [count_batches(data, 2) for data in FORMS.values() if data is not None] == [
        None if isinstance(data, datasets.IterableDataset) else 3
        for data in FORMS.values()
        if data is not None
    ]
    assert (count_tokens(ROWS), count_tokens(ROWS, 9)) == (20, 8)
    assert (count_tokens(FORMS["dataset"], 9), count_tokens(FORMS["stream"], 9)) == (8, None)
    share = shard(ROWS, rank=1, world_size=2)
    assert (count_tokens(share), count_batches(share, 2)) == (8, 1)


def test_the_bar_shows_tokens_a_second_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    dataset = datasets.Dataset.from_dict({"input_ids": LENGTHS})
    with Progress(dataset, 2, None, True) as bar:
        seen = list(batches(dataset, 2))
        bar.skip(seen[0])
        for batch in seen[1:]:
            bar.advance(batch)
        bar._bar.refresh()
    shown = capsys.readouterr().err
    assert "Collecting" in shown and "tok/s" in shown and "13.0/13.0" in shown


def test_no_bar_is_silent(best_model, tokens, capsys):
    wpca.collect(best_model, tokens, "blocks.0.hook_resid_post", progress=False)
    assert capsys.readouterr() == ("", "")


def test_single_sequences_of_an_iterable_are_batches_of_one():
    rows = [[1, 2, 3], [4, 5, 6]]
    for data in (rows, torch.tensor(rows).numpy(), [{"input_ids": row} for row in rows]):
        found = list(batches(data))
        assert [batch.inputs.tolist() for batch in found] == [[rows[0]], [rows[1]]]
        assert [batch.sequence_index.tolist() for batch in found] == [[0], [1]]


def test_text_and_dictionaries_of_splits_are_no_sequences():
    with pytest.raises(TypeError, match="The data holds text; expected token ids"):
        list(batches(["Once upon a time"]))
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"input_ids": [[1, 2]]})})
    with pytest.raises(TypeError, match="The data is a DatasetDict; expected"):
        list(batches(splits))


def test_a_loader_of_tokens_and_labels_says_what_it_is():
    loader = DataLoader(TensorDataset(ROWS, torch.zeros(len(ROWS))), batch_size=2)
    with pytest.raises(
        ValueError, match="A batch of the data is a list of 2 tensors.*tokens alone"
    ):
        next(batches(loader, 2))
    assert next(batches((batch[0] for batch in loader), 2)).inputs.shape == (2, ROWS.shape[1])


def test_advice_on_text_names_what_there_is():
    from transformer_lens.utilities import tokenize_and_concatenate

    for text in (["Once upon a time"], [{"text": "Once"}]):
        with pytest.raises((TypeError, ValueError)) as caught:
            next(batches(text, 2))
        assert f"{tokenize_and_concatenate.__name__}" in str(caught.value)
        assert "transformer_lens.utilities." in str(caught.value)


def test_a_mask_by_another_name_is_not_overlooked():
    with pytest.raises(ValueError, match="rename it to `attention_mask`"):
        next(batches([{"input_ids": ROWS, "mask": torch.ones_like(ROWS)}], 2))


CUTS = {
    "take": lambda rows: rows.take(9),
    "skip": lambda rows: rows.skip(3),
    "skip and take": lambda rows: rows.skip(3).take(9),
    "take of a map": lambda rows: rows.map(lambda row: row).take(9),
    "map of a take": lambda rows: rows.take(9).map(lambda row: row),
    "a filter by number": lambda rows: rows.filter(lambda row, i: i % 3 < 2, with_indices=True),
    "shuffle": lambda rows: rows.shuffle(seed=1, buffer_size=4),
    "none": lambda rows: rows,
}


@pytest.mark.parametrize("n_files", [1, 2, 4, 6])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("cut", CUTS)
def test_shares_of_a_stream_are_together_what_one_process_reads(cut, world_size, n_files):
    rows = datasets.Dataset.from_dict({"input_ids": [[i, i] for i in range(24)]})
    data = CUTS[cut](rows.to_iterable_dataset(num_shards=n_files))

    def seen(*shares):
        found = [batch for one in shares for batch in batches(one, 2)]
        places = torch.cat([batch.sequence_index for batch in found]).tolist()
        return sorted(zip(places, torch.cat([b.inputs[:, 0] for b in found]).tolist(), strict=True))

    shares = [shard(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert seen(*shares) == seen(data)
