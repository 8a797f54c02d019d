"""A column either changes nothing or is refused, and a row that holds no tokens is named."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.columns import row_sizes

TOKENS = torch.arange(12).view(2, 6)
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
LEFT = RIGHT.flip(1)


def counted(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def rows_of(batch):
    """The batch as a data set, a row a sequence."""
    return datasets.Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


FORMS = {"batch": lambda batch: [batch], "rows": rows_of}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [RIGHT, LEFT, torch.ones_like(RIGHT)], ids=["right", "left", "no"])
def test_columns_that_say_what_holds_anyway_change_nothing(form, mask):
    whole = {
        "input_ids": TOKENS,
        "attention_mask": mask,
        # What Hugging Face's collators make.
        "labels": TOKENS.masked_fill(mask == 0, -100),
        "position_ids": counted(mask),
        "token_type_ids": torch.zeros_like(TOKENS),
        "loss_mask": mask,
    }
    plain = {name: whole[name] for name in ("input_ids", "attention_mask")}
    for one, other in zip(batches(FORMS[form](whole)), batches(FORMS[form](plain)), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("labels", TOKENS.masked_fill(TOKENS == 3, -100)),  # a prompt that is not learnt
        ("labels", TOKENS.roll(-1, 1)),
        ("position_ids", torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)),  # two sequences packed into one
        ("token_type_ids", torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)),
        ("completion_mask", torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)),
    ],
)
def test_a_column_that_would_change_the_result_is_refused(form, name, column):
    with pytest.raises(ValueError, match=f"a column '{name}' that differs from"):
        list(batches(FORMS[form]({"input_ids": TOKENS, name: column})))


def test_the_class_of_a_sequence_is_no_label_of_its_tokens():
    assert list(batches([{"input_ids": TOKENS, "labels": torch.tensor([1, 0])}]))
    assert list(
        batches(datasets.Dataset.from_dict({"input_ids": TOKENS.tolist(), "labels": [1, 0]}))
    )
    assert list(batches([{"input_ids": TOKENS, "labels": ["good", "bad"]}]))
    names = {"input_ids": TOKENS.tolist(), "labels": ["good", "bad"]}
    assert list(batches(datasets.Dataset.from_dict(names)))


@pytest.mark.parametrize("low", [-torch.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("form", FORMS)
def test_a_mask_that_is_added_to_scores_is_not_read_the_wrong_way_round(form, low):
    additive = torch.zeros(2, 6).masked_fill(RIGHT == 0, low)
    with pytest.raises(ValueError, match="attention_mask holds .*; expected 1 at real tokens"):
        list(batches(FORMS[form]({"input_ids": TOKENS, "attention_mask": additive})))


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_by_another_name_is_refused_in_every_form(form):
    with pytest.raises(ValueError, match="rename it to `attention_mask`"):
        list(batches(FORMS[form]({"input_ids": TOKENS, "mask": RIGHT})))


SMALL = [np.uint8, np.uint16, np.int8, np.int16, np.int32, np.uint32, np.int64]


@pytest.mark.parametrize("dtype", SMALL)
def test_tokens_of_every_integer_type_are_the_same_tokens(dtype):
    array = TOKENS.numpy().astype(dtype)
    for data in (torch.from_numpy(array), [array], [{"input_ids": array}]):
        (batch,) = batches(data)
        assert batch.inputs.dtype in (torch.int32, torch.int64)
        assert torch.equal(batch.inputs.long(), TOKENS)


ROWS_OF_NONE = {
    "None": ([[5, 6, 7], None], "holds None"),
    "a missing token": ([[5, 6], [5, None]], r"holds \[5, None\]"),
    "empty": ([[5, 6, 7], []], "holds no tokens"),
    "text": (["a b", "c d"], "holds 'a b'"),
    "one number": ([5, 6], r"holds int64 of shape \(\)"),
    "fractions": ([[0.5, 1.0], [1.0, 2.0]], "holds float"),
    "nested": ([[[5, 6]], [[5, 6]]], r"holds int64 of shape \(1, 2\)"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ROWS_OF_NONE)
def test_a_row_that_holds_no_tokens_is_named(kind, stream):
    rows, words = ROWS_OF_NONE[kind]
    data = datasets.Dataset.from_dict({"input_ids": rows})
    data = data.to_iterable_dataset() if stream else data
    with pytest.raises(ValueError, match=rf"Row [01] of the data {words}.*leave such rows out"):
        list(batches(data))


@pytest.mark.parametrize("item", [None, [None], 5, [[1, 2], [3, None]]])
def test_a_batch_that_holds_no_tokens_is_one_sentence(item):
    with pytest.raises(ValueError, match="A batch of the data is .*expected token ids"):
        list(batches([item]))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=5).filter(any), min_size=1, max_size=7),
    st.booleans(),
)
def test_the_sizes_of_rows_are_known_unread(masks, masked):
    columns = {"input_ids": [[7] * len(mask) for mask in masks]}
    if masked:
        columns["attention_mask"] = [list(map(int, mask)) for mask in masks]
    table = datasets.Dataset.from_dict(columns)
    expected = [sum(mask) if masked else len(mask) for mask in masks]
    for one in (table, table.with_format("torch"), table.select(range(len(masks)))):
        assert row_sizes(one).tolist() == expected


def test_sizes_that_only_reading_tells_are_not_guessed():
    table = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    assert row_sizes(table.with_transform(lambda rows: {"input_ids": [[1]] * len(rows)})) is None
    assert row_sizes(datasets.Dataset.from_dict({"text": ["a"]})) is None
    assert row_sizes(datasets.Dataset.from_dict({"input_ids": [[1], None]})) is None
