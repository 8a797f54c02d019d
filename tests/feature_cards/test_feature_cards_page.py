"""The page of feature cards: nothing of the data can break it, and a real browser shows it."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tl_weighted_pca.feature_cards.page import prompt_page
from tl_weighted_pca.feature_cards.token_text import TokenText, visible


@pytest.fixture(scope="module")
def made(story_cards):
    return story_cards


@pytest.fixture(scope="module")
def nasty(hostile_cards):
    return hostile_cards


class Page(HTMLParser):
    """What a parser makes of the page: tags, attributes, and text outside script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.inside = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        self.inside.append(tag)

    def handle_data(self, data):
        if self.inside[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass


def test_hostile_tokens_make_no_markup(made, nasty):
    """Whatever the tokens are, the page has the same kinds of tags and attributes, and shows the text."""
    plain, page = Page(made.to_html()), Page(nasty.to_html())
    assert set(page.tags) <= set(plain.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert {(tag, name) for tag, name, _ in page.attributes} <= {
        (tag, name) for tag, name, _ in plain.attributes
    }
    shown = "".join(page.text)
    tokens = {t for card in nasty for t, _ in card.promoted + card.suppressed}
    tokens |= {t for card in nasty for c in card.highest + card.lowest for t in c.tokens}
    assert any("<script>" in token for token in tokens)
    assert any("onerror" in token for token in tokens)
    for card in nasty:
        for token, _ in card.promoted + card.suppressed:
            assert visible(token) in shown
    assert '<b onmouseover="alert(1)">' in shown
    assert not set(shown) & {"\u202e", "\u200b", "\x07", "\u00a0"}


def test_a_component_that_never_varies_has_no_deviations_to_count(made):
    view = made.prompts[0]
    some = replace(view, deviations=view.deviations * torch.tensor([1, 0, 1, 1]))
    none = replace(view, deviations=torch.zeros_like(view.deviations))
    for each, shown in ((view, 4), (some, 3), (none, 0)):
        text = "".join(Page(prompt_page(each)).text)
        assert text.count("σ") == shown * len(view.tokens)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"), ("\n", "⏎"), ("\t\r", "⇥␍"), ("\u202e", "⟨U+202E⟩"), ("", ""),
        ("\u200b", "⟨U+200B⟩"), ("\u00a0", "⟨U+00A0⟩"), ("é", "é"), ("שלום", "שלום"), ("\ud800", "⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"), ("🙂", "🙂"), ("\x00", "⟨U+0000⟩"),
        # Of other categories, but drawn as nothing: joiners, fillers, selectors, the blank of Braille.
        ("\u034f", "⟨U+034F⟩"), ("\u115f\u1160", "⟨U+115F⟩⟨U+1160⟩"), ("\u17b4", "⟨U+17B4⟩"),
        ("\u180b", "⟨U+180B⟩"), ("\u180f", "⟨U+180F⟩"), ("\u2800", "⟨U+2800⟩"), ("\u3164", "⟨U+3164⟩"),
        ("\uffa0", "⟨U+FFA0⟩"), ("\ufe00", "⟨U+FE00⟩"), ("a\ufe0f", "a⟨U+FE0F⟩"),
        ("\U000e0100", "⟨U+E0100⟩"), ("\U000e01ef", "⟨U+E01EF⟩"), (" \ufe0f", "␣⟨U+FE0F⟩"),
        # A symbol's selector says how it looks; accents show.
        ("❤\ufe0f", "❤\ufe0f"), ("❤\ufe0f\ufe0f", "❤\ufe0f⟨U+FE0F⟩"), ("e\u0301", "e\u0301"),
    ],
)  # fmt: skip
def test_every_character_shows(token, shown):
    assert visible(token) == shown


def test_parts_of_characters_and_lost_spaces_are_told():
    """Byte-level BPE splits characters; SentencePiece drops spaces; ids may lie past the vocabulary."""
    from tokenizers import pre_tokenizers

    bytes_ = Tokenizer(models.BPE({"Ġthe": 0, "ðŁ": 1, "é": 2, "Ã©": 3}, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    text = TokenText(PreTrainedTokenizerFast(tokenizer_object=bytes_))
    assert text([0, 1, 3, 99]) == [" the", "ðŁ", "é", "#99"]
    pieces = Tokenizer(models.WordLevel({"▁the": 0, "the": 1, "<0x0A>": 2}, unk_token="the"))
    pieces.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    text = TokenText(PreTrainedTokenizerFast(tokenizer_object=pieces))
    assert text([0, 1, 2]) == [" the", "the", "\n"]
    assert TokenText(None)([5]) == ["#5"]


def test_a_hole_in_the_ids_is_a_number_and_what_lies_past_it_a_token():
    """Two tokens, numbered 0 and 3: their count is below the larger number."""
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 3}, unk_token="the"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert len(tokenizer) == 2
    assert TokenText(tokenizer)([0, 1, 2, 3, 4]) == ["the", "#1", "#2", "cat", "#4"]


def test_saving_is_all_or_nothing(made, tmp_path):
    path = tmp_path / "cards.html"
    made.save(path)
    assert path.read_text(encoding="utf-8") == made.to_html()
    with pytest.raises(OSError, match="no ordinary file"):
        made.save(tmp_path)
    with pytest.raises(OSError, match="Cannot write to the folder"):
        made.save(tmp_path / "nowhere" / "cards.html")
    assert [each.name for each in tmp_path.iterdir()] == ["cards.html"]


def test_a_notebook_shows_the_page_in_a_frame(made):
    frame = Page(made._repr_html_())
    assert frame.tags == ["iframe"]
    (page,) = [value for _, name, value in frame.attributes if name == "srcdoc"]
    assert Page(page).text[-20:] == Page(made.to_html()).text[-20:]
