"""Text in any form becomes the same sequences, and what is no text is refused in a sentence."""

import itertools
import json

import datasets
import pandas as pd
import pytest
import tokenizers
import torch
import transformers

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.text import check_source, tokenized_text, unknown_share
from tl_weighted_pca.models.pretrained import load_pretrained

TEXTS = ["Once upon a time", "there lived a boy named Noah. He was happy", "One"]


class Words:
    """A tokenizer of words, numbered as they come, for what depends on no model."""

    bos_token_id = 0

    def __call__(self, texts, **options):
        return {
            "input_ids": [[int(word.strip(".").encode()[0]) for word in t.split()] for t in texts]
        }


def as_txt(folder):
    (folder / "a.txt").write_text("\n\n".join(TEXTS))
    return "a.txt"


def as_jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in TEXTS))
    return "a.jsonl"


def as_parquet(folder):
    pd.DataFrame({"text": TEXTS, "n": 1}).to_parquet(folder / "a.parquet")
    return "a.parquet"


def as_saved(folder):
    datasets.Dataset.from_dict({"text": TEXTS, "n": [1] * 3}).save_to_disk(folder / "a")
    return "a"


def as_splits(folder):
    train = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": train, "test": train.select([2])}).save_to_disk(folder / "b")
    return "b"


FORMS = [as_txt, as_jsonl, as_parquet, as_saved, as_splits]


def sequences(source, length=128, tokenizer=Words(), **options):  # noqa: B008 (it keeps no state)
    rows = tokenized_text(source, tokenizer, length, **options)
    return [list(row["input_ids"]) for row in rows]


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_sequences(tmp_path, form, best_model):
    source = form(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = sequences(source, tokenizer=best_model.tokenizer)
    # The tokenizer puts BOS in front by itself.
    assert found == [best_model.tokenizer(text)["input_ids"] for text in TEXTS]
    # Reading leaves nothing beside the data.
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("length", [2, 3, 5, 100])
def test_long_texts_are_cut_and_no_token_is_lost(tmp_path, form, bos, length):
    found = sequences(form(tmp_path), length, prepend_bos=bos)
    assert all(2 <= len(piece) <= length for piece in found)
    assert not bos or all(piece[0] == 0 for piece in found)
    whole = Words()(TEXTS)["input_ids"]
    if bos:
        assert list(itertools.chain(*(piece[1:] for piece in found))) == list(
            itertools.chain(*whole)
        )
    else:
        # Without BOS a token on its own has nothing to predict.
        kept = (t[s : s + length] for t in whole for s in range(0, len(t), length))
        assert found == [piece for piece in kept if len(piece) > 1]


@pytest.mark.parametrize(("by", "n"), [("line", 3), ("paragraph", 2), ("document", 1)])
def test_what_makes_a_text_of_a_file(tmp_path, by, n):
    (tmp_path / "a.txt").write_text("one two\nthree four\n\nfive six\n")
    assert len(sequences("a.txt", sample_by=by)) == n


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_text_that_is_missing_is_left_out_wherever_it_is(tmp_path, form, at):
    frame = pd.DataFrame({"text": [*TEXTS[:at], None, *TEXTS[at:]]})
    if form == "jsonl":
        frame.to_json("a.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet("a.parquet")
    assert len(sequences(f"a.{form}")) == len(TEXTS)


def test_what_a_sequence_cannot_be_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("one two")
    for length, message in ((1, "is 1; expected at least 2"), ("8", "is '8'; expected a whole")):
        with pytest.raises(ValueError, match=f"context_length {message}"):
            tokenized_text("a.txt", Words(), length)
    with pytest.raises(ValueError, match="sample_by is 'word'; expected one of 'line'"):
        sequences("a.txt", sample_by="word")


def test_a_split_and_a_column_can_be_named(tmp_path):
    assert len(sequences(as_splits(tmp_path), split="test")) == 1
    pd.DataFrame({"body": TEXTS}).to_parquet("c.parquet")
    assert len(sequences("c.parquet", column="body")) == 3


def test_tokens_are_taken_as_they_are(tmp_path):
    rows = [[5, 6, 7], [8, 9]]
    datasets.Dataset.from_dict({"input_ids": rows, "facts": ["a", "b"]}).save_to_disk("tokens")
    found = tokenized_text("tokens", None, 2)
    assert [row["input_ids"] for row in found] == rows
    assert "facts" in found.column_names


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_tokens_that_the_model_cannot_take_are_refused(tmp_path, stream, model):
    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6], [7] * 129]})
    source = "tokens.parquet" if stream else "tokens"
    rows.to_parquet(source) if stream else rows.save_to_disk(source)
    data = tokenized_text(source, None, 8)
    with pytest.raises(
        ValueError, match="sequences of 129 tokens, but the model takes at most 128"
    ):
        wpca.collect(model, data, "blocks.0.hook_resid_post", progress=False)


ODD = [
    "notes[1].txt", "a*.txt", "q?.txt", "[!a].txt", "{a,b}.txt", "a:b.txt", "x y .txt", "ünïcödé é.txt",
    "new\nline.txt", "#h.txt", "pc%20t.txt", "-dash.txt", "~tilde.txt", "a\\b.txt", "'q\".txt",
    ".hidden.txt", "**.txt", "[].txt", "[[].txt", "$HOME.txt", "a|b.txt", "zip:x.txt", "a;b&c.txt",
    "[bold].txt",
]  # fmt: skip
"""Names of files whose characters mean something to somebody; each has a neighbour that a glob would find."""


@pytest.fixture
def odd(tmp_path):
    for i, name in enumerate([*ODD, "notes1.txt", "ab.txt", "qx.txt", "b.txt", "a.txt"]):
        (tmp_path / name).write_text(f"{chr(65 + i)} one")
    return tmp_path


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("where", [".", "absolute"])
def test_the_file_that_is_named_is_the_one_that_is_read(odd, name, where):
    source = str(odd / name) if where == "absolute" else f"./{name}"
    assert sequences(source) == [[0, 65 + ODD.index(name), ord("o")]]


@pytest.mark.parametrize("name", ["[a]", "*", "a b", "{x,y}", "q?", "ü"])
def test_folders_of_any_name_are_read(tmp_path, name):
    for folder, text in ((name, "One two"), ("a", "Three four"), ("ab", "Five six")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.txt").write_text(text)
        datasets.Dataset.from_dict({"text": [text]}).save_to_disk(tmp_path / folder / "saved")
    assert sequences(f"{name}/x.txt") == sequences(f"{name}/saved") == [[0, ord("O"), ord("t")]]


def test_a_name_that_datasets_would_read_as_two_is_refused(tmp_path):
    (tmp_path / "a::b.txt").write_text("One two")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a::b.txt")
    with pytest.raises(ValueError, match="has '::' in its path.*pass a link to it"):
        sequences("a::b.txt")
    assert len(sequences("link.txt")) == 1


def test_a_row_of_another_kind_is_named_with_its_file(tmp_path):
    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6], None]})
    rows.to_parquet("x.parquet")
    with pytest.raises(
        ValueError, match=r"Row 1 of x\.parquet holds None; expected a list of token"
    ):
        list(batches(tokenized_text("x.parquet", None, 8)))
    rows = [{"text": "One two"}] * 2 + [{"text": 5}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TypeError, match=r"Row 2 of x\.jsonl holds 5 in the column 'text'"):
        list(batches(tokenized_text("x.jsonl", Words(), 8)))


# -- the vocabulary ------------------------------------------------------------------------------


def other_model(folder):
    """A model of another vocabulary, in which the ids of this one are valid numbers."""
    config = transformers.GPT2Config(
        vocab_size=5000, n_positions=128, n_embd=8, n_layer=1, n_head=2
    )
    words = {f"w{i}": i for i in range(5000)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_pretrained(str(folder))


def told(tmp_path, model):
    """Data whose vocabulary is known, in the forms that a user makes of them."""
    (tmp_path / "own.txt").write_text("\n\n".join(embedded.stories("train", 12)["text"]))
    stories = embedded.stories("train", 12)
    stories.save_to_disk(tmp_path / "saved")
    return {
        "stories": stories,
        "selected": stories.select_columns(["input_ids"]).shuffle(seed=0).select(range(9)),
        "shard": wpca.shard(stories, rank=0, world_size=2),
        "loader": torch.utils.data.DataLoader(stories.with_format("torch"), batch_size=1),
        "saved": datasets.load_from_disk(tmp_path / "saved"),
        "tokenised": tokenized_text("own.txt", model.tokenizer, 64),
    }


def test_data_of_another_vocabulary_are_refused(tmp_path, model):
    point, other = "blocks.0.hook_resid_post", other_model(tmp_path / "other")
    moments = wpca.collect(other, torch.arange(40).view(2, 20), point, progress=False)[point]
    bases = {"pca": wpca.pca(moments)}
    for name, data in told(tmp_path, model).items():
        assert wpca.collect(model, data, point, progress=False)[point].n_tokens, name
        with pytest.raises(
            ValueError, match="another vocabulary than the model's.*model.tokenizer"
        ):
            wpca.collect(other, data, point, progress=False)
        with pytest.raises(ValueError, match="another vocabulary"):
            wpca.ablation_curves(other, data, bases, point, progress=False)
    other.tokenizer = None  # and nobody can tell
    assert wpca.collect(other, embedded.stories("train", 3), point, progress=False)[point].n_tokens


def test_both_embedded_models_have_one_vocabulary(model):
    slips = embedded.load_model(type(model).__name__, slips=True)
    for data in (embedded.stories("train", 3), embedded.stories("train", 3, slips=True)):
        for one in (model, slips):
            wpca.collect(one, data, "blocks.0.hook_resid_post", progress=False)


def test_a_file_is_read_as_it_is_used(tmp_path, monkeypatch):
    """Only the beginning of what is large is tokenised, however much there is."""
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n' * 100_000)
    seen = []

    class Counting(Words):
        def __call__(self, texts, **options):
            seen.extend(texts)
            return super().__call__(texts)

    rows = tokenized_text("a.jsonl", Counting(), 8)
    assert len(list(itertools.islice(rows, 10))) == 10
    assert len(seen) < 5_000


def empty(folder):
    (folder / "x.txt").write_text("")
    return "x.txt"


def blank(folder):
    (folder / "x.jsonl").write_text("\n\n")
    return "x.jsonl"


def binary(folder):
    (folder / "x.txt").write_bytes(bytes(range(256)))
    return "x.txt"


def latin(folder):
    (folder / "x.txt").write_bytes("Café olé".encode("latin-1"))
    return "x.txt"


def no_json(folder):
    (folder / "x.jsonl").write_text("{not json")
    return "x.jsonl"


def no_parquet(folder):
    (folder / "x.parquet").write_text("PAR1 but no more")
    return "x.parquet"


def unknown_kind(folder):
    (folder / "x.docx").write_text("text")
    return "x.docx"


def folder_of_text(folder):
    (folder / "x").mkdir()
    (folder / "x" / "a.txt").write_text("text")
    return "x"


def no_text(folder):
    pd.DataFrame({"body": TEXTS, "n": 1}).to_parquet("x.parquet")
    return "x.parquet"


def numbers(folder):
    pd.DataFrame({"text": [1, 2]}).to_parquet("x.parquet")
    return "x.parquet"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (empty, "x.txt is empty: pass text."),
        (blank, "x.jsonl"),
        (binary, "x.txt is a binary file, not text: expected a .txt"),
        (
            latin,
            "Cannot read x.txt: it is not UTF-8; convert it, for example with iconv.",
        ),
        (no_json, "Cannot read x.jsonl: JSON parse error"),
        (no_parquet, "Cannot read x.parquet: Parquet magic bytes not found"),
        (unknown_kind, "x.docx ends in .docx; expected a .txt, .jsonl or .parquet file"),
        (folder_of_text, "The folder x was not saved by `datasets`: expected"),
        (no_text, "x.parquet has no column 'text'; its columns are 'body', 'n': name one with"),
        (numbers, "The column 'text' of x.parquet holds int, not text"),
        (lambda folder: "nowhere.txt", "There is no file nowhere.txt: expected"),
        (lambda folder: "./nowhere", "There is no file ./nowhere: expected"),
        (lambda folder: "no/where", "Cannot load the data set 'no/where' from the hub: .*network"),
        (
            lambda folder: "no/where/at/all",
            "Cannot load the data set 'no/where/at/all' from the hub",
        ),
        (as_splits, None),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(tmp_path, source, words, caplog):
    options = {"split": "dev"} if words is None else {}
    words = words or "b has no split 'dev'; it has 'train', 'test': name one with --split"
    with pytest.raises(ValueError, match=words) as caught:
        sequences(source(tmp_path), **options)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # `datasets` would tell it all a second time


@pytest.mark.parametrize("source", [empty, binary, unknown_kind, folder_of_text])
def test_what_is_no_text_is_known_before_a_model_is_loaded(tmp_path, source):
    with pytest.raises(ValueError):  # noqa: PT011 (the sentences are above)
        check_source(source(tmp_path))


def test_words_that_the_model_does_not_know_are_counted(tmp_path, best_model):
    (tmp_path / "a.txt").write_text("Once upon a quark")
    rows = tokenized_text("a.txt", best_model.tokenizer, 128)
    assert unknown_share(rows, best_model.tokenizer.unk_token_id) == pytest.approx(1 / 5)
    assert unknown_share(rows, None) == 0


def test_a_byte_order_mark_is_no_text(tmp_path):
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_text("One two\n\nthree four", encoding="utf-8")
    marked.write_text("One two\n\nthree four", encoding="utf-8-sig")
    one, two = ([*tokenized_text(str(f), Words(), 8)] for f in (plain, marked))
    assert [r["input_ids"] for r in one] == [r["input_ids"] for r in two]
