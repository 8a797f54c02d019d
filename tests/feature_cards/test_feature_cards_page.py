"""The page of feature cards: nothing of the data can break it, and a real browser shows it."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.feature_cards.token_text import TokenText, visible

HOOK = "blocks.2.hook_resid_post"

NASTY = [
    "<script>alert(1)</script>", "&amp;", "\"'`", "</style>", "\n", "\t", "  ", " ", "", "שלום",
    "\u202eevil", "\u200b", "{{ 7*7 }}", "{% if %}", "-->", "<!--", "]]>", "é", "🙂", "\x07",
    "<img src=x onerror=alert(1)>", "\u00a0", "a\nb", "javascript:alert(1)", "\\u0041",
]  # fmt: skip


@pytest.fixture(scope="module")
def nasty_tokenizer(best_model):
    """One that gives hostile text for the ids of the embedded model's vocabulary."""
    size = best_model.cfg.d_vocab
    vocabulary = {f"{NASTY[i % len(NASTY)]}{'' if i < len(NASTY) else i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="é"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def stories():
    return embedded.stories("heldout", 60)


@pytest.fixture(scope="module")
def made(best_model, stories):
    """Cards of the embedded model, with all there is on a card."""
    stats = wpca.collect(best_model, stories, HOOK, statistics=["activation"], progress=False)
    return wpca.cards(
        best_model, stories, wpca.pca(stats[HOOK]), 4, facts=embedded.FACTS, contexts=4,
        batch_size=30, ablation_tokens=2000, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def nasty(best_model, stories, nasty_tokenizer):
    """Cards whose tokens, facts and names of facts are hostile."""
    stats = wpca.collect(best_model, stories, HOOK, statistics=["activation"], progress=False)
    column = '<b onmouseover="alert(1)">'
    data = Dataset.from_dict(
        {"input_ids": stories["input_ids"], column: [f"<i>{i % 2}" for i in range(len(stories))]}
    )
    return wpca.cards(
        best_model, data, wpca.pca(stats[HOOK]), 4, facts=[column], contexts=4, score=None,
        tokenizer=nasty_tokenizer, progress=False,
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"), ("\n", "⏎"), ("\t\r", "⇥␍"), ("\u202e", "⟨U+202E⟩"), ("", ""),
        ("\u200b", "⟨U+200B⟩"), ("\u00a0", "⟨U+00A0⟩"), ("é", "é"), ("שלום", "שלום"), ("\ud800", "⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"), ("🙂", "🙂"), ("\x00", "⟨U+0000⟩"),
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


# In a real browser, if there is one.

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page offline; every complaint and every request is kept."""
    contexts = []

    def open_page(cards, width=1200, height=900, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: page.complaints.append(f"dialog {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:")) or page.complaints.append(request.url)
            ),
        )
        path = tmp_path / "cards.html"
        cards.save(path)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@needs_browser
@pytest.mark.parametrize("kind", ["made", "nasty"])
@pytest.mark.parametrize("width", [320, 375, 1200])
def test_it_opens_offline_and_fits(visit, request, kind, width):
    page = visit(request.getfixturevalue(kind), width=width)
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("article").count() == 4
    # Tables may be wider than a phone; then they scroll, and the keyboard reaches them.
    for region in page.locator(".wide").all():
        assert region.get_attribute("tabindex") == "0"


@needs_browser
def test_hostile_text_stays_text(visit, nasty):
    page = visit(nasty)
    assert page.complaints == []
    assert page.locator("script").count() == 1
    assert page.locator("img, b").count() == 0
    assert page.locator("text=<script>alert(1)</script>").count() > 0


@needs_browser
def test_the_keyboard_goes_from_card_to_card(visit, made):
    page = visit(made)

    def focused():
        return page.evaluate("document.activeElement.textContent")

    page.keyboard.press("Tab")
    assert focused() == "Skip to the cards"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    keys = ["ArrowRight", "ArrowRight", "j", "k", "ArrowLeft", "k"]
    for key, name in zip(keys, [0, 1, 2, 1, 0, 0], strict=True):
        page.keyboard.press(key)
        assert focused() == f"Component {name}"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for _ in range(2):  # the link back to the overview lies between
        page.keyboard.press("Tab")
    assert focused() == "Component 1"


@needs_browser
def test_letters_are_keys_only_while_a_card_has_the_focus(visit, made):
    """WCAG 2.1.4: whoever dictates types letters wherever they are."""
    page = visit(made)

    def focused():
        return page.evaluate("document.activeElement.id || document.activeElement.textContent")

    page.keyboard.press("j")
    assert page.evaluate("document.activeElement === document.body && scrollY === 0")
    page.keyboard.press("Tab")
    for key in "jk":
        page.keyboard.press(key)
        assert focused() == "Skip to the cards"
    page.keyboard.press("Enter")  # the link puts the focus into the cards
    assert focused() == "c0"
    page.keyboard.press("j")
    assert focused() == "Component 1"
    page.locator("#c2 h3").first.click()  # and so does a click
    page.keyboard.press("k")
    assert focused() == "Component 1"


@needs_browser
def test_the_filter_hides_what_lacks_the_word(visit, made):
    page = visit(made)
    word = made[2].promoted[0][0].strip()
    having = sum(word in card.inner_text().lower() for card in page.locator("article").all())
    page.fill("input", word.upper())
    assert page.locator("article:visible").count() == having
    assert page.locator("tbody tr[id]:visible").count() == having
    assert page.inner_text("#count") == f"{having} of 4"
    page.focus("input")
    page.keyboard.type("jk")  # letters are letters there
    assert page.input_value("input").endswith("jk")


@needs_browser
def test_it_works_without_script(visit, made):
    page = visit(made, java_script_enabled=False)
    assert page.locator("article:visible").count() == 4
    assert not page.locator("input").is_visible()
    page.click("table.overview a >> nth=3")
    assert page.url.endswith("#c3")


@needs_browser
def test_in_a_notebook_links_stay_in_the_frame(visit, made, tmp_path):
    page = visit(made)
    around = tmp_path / "notebook.html"
    around.write_text(f"<!doctype html><h1>Notebook</h1>{made._repr_html_()}", encoding="utf-8")
    page.goto(around.as_uri())
    frame = page.frames[1]
    frame.click("table.overview a >> nth=3")
    frame.locator("#h3 a").focus()
    page.keyboard.press("k")
    assert frame.evaluate("document.activeElement.textContent") == "Component 2"
    assert frame.url == "about:srcdoc#c3"
    assert page.inner_text("h1") == "Notebook"
    assert page.complaints == []


def luminance(color):
    channels = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit, made, scheme):
    """WCAG AA, 4.5 to 1, for the text of every element, over what lies behind it."""
    page = visit(made, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = page.evaluate("""() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const seen = new Map();
      for (const element of document.body.querySelectorAll("*")) {
        if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
        if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
        const layers = [];
        for (let e = element; e; e = e.parentElement) {
          const style = getComputedStyle(e);
          layers.push([...parse(style.backgroundColor), 1].slice(0, 4).concat(Number(style.opacity)));
        }
        const color = parse(getComputedStyle(element).color);
        seen.set(JSON.stringify([color, layers]), element.tagName + "." + element.className);
      }
      return [...seen];
    }""")
    assert len(found) > 20
    for key, name in found:
        color, layers = json.loads(key)
        behind = [255.0, 255.0, 255.0] if scheme == "light" else [0.0, 0.0, 0.0]
        for r, g, b, alpha, _ in reversed(layers):
            behind = [alpha * c + (1 - alpha) * d for c, d in zip((r, g, b), behind, strict=True)]
        opacity = 1.0
        for *_, each in layers:
            opacity *= each
        text = [opacity * c + (1 - opacity) * d for c, d in zip(color, behind, strict=False)]
        if name == "I.":  # the sign for a space, an ornament
            continue
        low, high = sorted([luminance(text[:3]), luminance(behind)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, color, layers)


@needs_browser
def test_it_prints_and_says_what_it_is(visit, made):
    page = visit(made)
    assert len(page.pdf()) > 10_000
    headings = [
        int(each.evaluate("e => e.tagName")[1]) for each in page.locator("h1, h2, h3").all()
    ]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(headings, headings[1:], strict=False))
    assert page.locator("html").get_attribute("lang") == "en"
    assert re.search("standard deviation", page.locator("svg").first.get_attribute("aria-label"))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    dangling = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].filter("
        "(a) => !document.getElementById(a.hash.slice(1))).length"
    )
    assert dangling == 0
