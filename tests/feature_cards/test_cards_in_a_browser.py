"""The page of cards as Chromium shows it: it fits, sorts, searches, and answers pointer and keys."""

import json
import re
from dataclasses import replace

import pytest
import torch
from in_browser import SCREENS, on_each_screen, too_wide

import tl_weighted_pca as wpca
from tl_weighted_pca.feature_cards.page import prompt_page

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def made(story_cards):
    return story_cards


@pytest.fixture(scope="module")
def nasty(hostile_cards):
    return hostile_cards


@pytest.fixture
def see(visit, tmp_path):
    """Save cards and open them."""

    def open_cards(cards, width=1200, **options):
        path = tmp_path / "cards.html"
        cards.save(path)
        return visit(path, width, **options)

    return open_cards


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_function("!document.querySelector('[data-t]')")


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
@pytest.mark.parametrize("kind", ["made", "nasty"])
def test_it_opens_offline_and_fits(see, request, kind, width, scheme):
    cards = request.getfixturevalue(kind)
    page = see(cards, width, color_scheme=scheme)
    assert too_wide(page) <= 0
    assert page.locator("article").count() == len(cards)
    open_all(page)
    assert too_wide(page) <= 0
    # Tables may be wider than a phone; then they scroll, and the keyboard reaches them.
    for region in page.locator(".wide").all():
        assert region.get_attribute("tabindex") == "0"
    page.check("#values")
    assert too_wide(page) <= 0
    assert page.complaints == []


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_axe_has_no_serious_findings(see, made, axe, width, scheme):
    page = see(made, width, color_scheme=scheme, bypass_csp=True)
    assert axe(page) == []
    open_all(page)
    assert axe(page) == []


def test_hostile_text_stays_text(see, nasty):
    page = see(nasty)
    open_all(page)
    assert page.complaints == []
    assert page.locator("script").count() == 1
    assert page.locator("img, b").count() == 0
    assert page.locator("text=<script>alert(1)</script>").count() > 0
    # Split into tokens, a context is the text it was, and every token is whole.
    context = nasty[0].highest[0]
    pieces = page.locator("#c0 .contexts .text").first.locator("i, mark").all_text_contents()
    assert len(pieces) == len(context.tokens)


def test_cards_are_closed_until_opened(see, made):
    page = see(made)
    assert page.locator("article details[open]").count() == 0
    assert not page.locator("#c1 h3").first.is_visible()
    page.click("#c1 summary >> nth=0")
    assert page.locator("#c1 h3").first.is_visible()
    page.click("#all")
    assert page.locator("article > details[open]").count() == len(made)
    page.click("#all")
    assert page.locator("article > details[open]").count() == 0
    page.click("table.overview tbody a >> nth=2")  # a link opens what it leads to
    page.wait_for_selector("#c2 > details[open]")
    assert page.url.endswith("#c2")
    page.click("#c2 summary >> nth=0")
    page.click("table.overview tbody a >> nth=2")  # and again
    page.wait_for_selector("#c2 > details[open]")


def test_the_keyboard_goes_from_card_to_card(see, made):
    page = see(made)

    def focused():
        return page.evaluate("document.activeElement.querySelector('h2')?.textContent")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the cards"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    keys = ["ArrowRight", "ArrowRight", "j", "k", "ArrowLeft", "k"]
    for key, name in zip(keys, [0, 1, 2, 1, 0, 0], strict=True):
        page.keyboard.press(key)
        assert focused() == f"Component {name}"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    assert focused() == "Component 1"
    page.keyboard.press("Enter")
    assert page.locator("#c1 > details[open]").count() == 1


def test_letters_are_keys_only_while_a_card_has_the_focus(see, made):
    """WCAG 2.1.4: whoever dictates types letters wherever they are."""
    page = see(made)

    def focused():
        return page.evaluate(
            "document.activeElement.id || document.activeElement.querySelector('h2')?.textContent "
            "|| document.activeElement.textContent"
        )

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


def test_search_is_among_tokens_alone(see, made):
    page = see(made)
    search = page.locator("#search")

    def having(word):
        return [
            i
            for i, card in enumerate(made)
            if any(
                word in token.lower()
                for token in [
                    *(token for token, _ in card.promoted + card.suppressed),
                    *(c.token for c in card.highest + card.lowest),
                    *(c.token for group in card.quantiles for c in group.contexts),
                ]
            )
        ]

    word = next(
        t.strip() for card in made for t, _ in card.promoted if len(having(t.strip().lower())) < 4
    )
    for wanted in (word.upper(), "eigenvalue", " "):  # a word of the page's own is no token
        search.fill(wanted)
        expected = having(wanted.lower())
        assert page.locator("article:visible").count() == len(expected)
        assert page.locator("table.overview tbody tr:visible").count() == len(expected)
        assert page.inner_text("#count") == f"{len(expected)} of {len(made)}"
        assert page.locator("article:visible").evaluate_all("e => e.map(a => a.id)") == [
            f"c{i}" for i in expected
        ]
    search.fill("")
    assert page.locator("article:visible").count() == len(made)
    search.focus()
    page.keyboard.type("jk")  # letters are letters there
    assert page.input_value("#search") == "jk"


def test_columns_sort_and_the_cards_with_them(see, made):
    page = see(made)
    heads = page.locator("table.overview thead th")
    names = [text.strip() for text in heads.all_inner_texts()]
    assert names == ["Component", "Share", "Cost", "Tells apart", "Promotes"]

    def order():
        return page.locator("#cards > article").evaluate_all("e => e.map(a => a.id)")

    costs = [float(card.cost) for card in made]
    by_cost = sorted(range(len(made)), key=lambda i: -costs[i])
    page.click("table.overview th button >> nth=2")
    assert heads.nth(2).get_attribute("aria-sort") == "descending"
    assert order() == [f"c{i}" for i in by_cost]
    page.locator("table.overview th button").nth(2).focus()
    page.keyboard.press("Enter")
    assert heads.nth(2).get_attribute("aria-sort") == "ascending"
    assert order() == [f"c{i}" for i in reversed(by_cost)]
    rows = page.locator("table.overview tbody tr").evaluate_all("e => e.map(r => r.dataset.card)")
    assert rows == order()
    page.click("table.overview th button >> nth=4")  # words, from a to z
    words = page.locator("table.overview tbody td:last-child").all_inner_texts()
    assert words == sorted(words, key=str.lower)
    page.click("table.overview th button >> nth=0")
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    assert order() == [f"c{i}" for i in range(len(made))]
    sorted_heads = page.locator("table.overview th[aria-sort]")
    assert sorted_heads.count() == 1
    page.click("table.facts th button >> nth=1")
    shown = page.locator("table.facts").first.locator("tbody td:first-of-type").all_inner_texts()
    values = [float(text.replace("−", "-").rstrip("*") or "nan") for text in shown]
    assert values == sorted(values, reverse=True)


def test_every_token_has_its_value(see, made):
    page = see(made)
    page.click("#c1 summary >> nth=0")
    card, context = made[1], made[1].highest[0]
    tokens = page.locator("#c1 .contexts .text").first.locator("i, mark")
    assert tokens.count() == len(context.tokens)
    for i in (0, context.focus, len(context.tokens) - 1):
        token = tokens.nth(i)
        token.hover()
        z = context.coordinates[i]
        found = re.fullmatch(r"z = (\S+) \((\S+)σ\)", page.inner_text("#tip"))
        value, deviations = (float(text.replace("−", "-")) for text in found.groups())
        most = max(abs(c.coordinate) for c in card.highest + card.lowest)
        assert value == pytest.approx(z, abs=0.01 * most)
        assert deviations == pytest.approx(z / card.histogram.std, abs=0.1)
    page.mouse.move(2, 2)
    assert not page.is_visible("#tip")
    # And without a pointer.
    label = "getComputedStyle(document.querySelector('#c1 [data-z]'), '::after').content"
    assert page.evaluate(label) == "none"
    page.focus("#values")
    page.keyboard.press("Space")
    assert page.evaluate(label).strip('"') == tokens.nth(0).get_attribute("data-z")
    # Of a component that never varies there are no deviations to count.
    still = [replace(each, histogram=replace(each.histogram, std=0.0)) for each in made]
    page = see(replace(made, cards=still))
    page.click("#c0 summary >> nth=0")
    page.locator("#c0 .contexts mark").first.hover()
    assert re.fullmatch(r"z = \S+", page.inner_text("#tip"))


def test_counts_have_a_logarithm_on_demand(see, made):
    page = see(made)
    page.click("#c0 summary >> nth=0")
    linear, log = (page.locator(f"#c0 .{kind}").first for kind in ("linear", "log"))
    assert linear.is_visible() and not log.is_visible()
    page.check("#logs")
    assert log.is_visible() and not linear.is_visible()
    assert log.bounding_box()["height"] > 10


def test_prompts_are_chosen_from_a_field(see, made):
    page = see(made)
    assert page.locator(".prompt:visible").count() == 1
    select = page.locator("#choice select")
    assert select.locator("option").count() == 2
    select.select_option("1")
    shown = page.locator(".prompt:visible tbody tr")
    assert shown.count() == len(made.prompts[1].tokens)
    view = made.prompts[1]
    (i, effect), *_ = view.most_effective(1, 1)
    text = shown.nth(1).locator("td").last.inner_text()
    assert text.startswith(f"{view.labels[i]} {effect:+.2f}".replace("-", "−"))


def test_a_prompt_has_a_page_of_its_own(visit, made, nasty, tmp_path):
    for i, cards in enumerate((made, nasty)):
        path = tmp_path / f"{i}.html"
        path.write_text(prompt_page(cards.prompts[0]), encoding="utf-8")
        page = visit(path)
        for _ in on_each_screen(page):
            assert too_wide(page) <= 0
            assert page.locator(".prompt tbody tr:visible").count() == len(cards.prompts[0].tokens)
        assert page.complaints == []


def test_axe_has_no_serious_findings_in_a_prompt(visit, made, tmp_path, axe):
    (tmp_path / "prompt.html").write_text(prompt_page(made.prompts[0]), encoding="utf-8")
    page = visit(tmp_path / "prompt.html", bypass_csp=True)
    for _ in on_each_screen(page):
        assert axe(page) == []


def test_it_works_without_script(see, made):
    page = see(made, java_script_enabled=False)
    assert page.locator("article:visible").count() == 4
    assert not page.locator("#search").is_visible()
    page.click("table.overview a >> nth=3")
    assert page.url.endswith("#c3")
    page.click("#c3 summary >> nth=0")
    assert page.locator("#c3 mark").first.is_visible()


def test_in_a_notebook_links_stay_in_the_frame(visit, made, tmp_path):
    around = tmp_path / "notebook.html"
    around.write_text(f"<!doctype html><h1>Notebook</h1>{made._repr_html_()}", encoding="utf-8")
    page = visit(around)
    frame = page.frames[1]
    frame.click("table.overview a >> nth=3")
    frame.wait_for_selector("#c3 > details[open]")
    frame.locator("#c3 summary").first.focus()
    page.keyboard.press("k")
    assert frame.evaluate("document.activeElement.querySelector('h2').textContent") == "Component 2"
    assert frame.url == "about:srcdoc#c3"
    assert page.inner_text("h1") == "Notebook"
    assert page.complaints == []


def test_past_64_there_is_an_index_and_one_file_a_component(best_model, heldout, visit, tmp_path):
    few = heldout.select(range(4))
    neurons = "blocks.1.mlp.hook_post"
    stats = wpca.collect(
        best_model, few, neurons, statistics=["activation"], progress=False, batch_size=32
    )
    made = wpca.cards(
        best_model, few, wpca.pca(stats[neurons]), 66, contexts=1, score=None, progress=False
    )
    made.save(tmp_path / "many.html")
    folder = tmp_path / "many_components"
    assert len(list(folder.iterdir())) == 66
    assert (tmp_path / "many.html").stat().st_size < 200_000
    page = visit(tmp_path / "many.html")
    for _ in on_each_screen(page):
        assert too_wide(page) <= 0
    assert page.locator("table.overview tbody tr").count() == 66
    page.fill("#search", made[65].promoted[0][0])
    page.click("table.overview tbody tr[data-card=c65] a")
    assert page.inner_text("h1") == "Component 65"
    assert page.locator(".contexts [data-z]").count() > 0
    for _ in on_each_screen(page):
        assert too_wide(page) <= 0
    page.click("nav a[rel=prev]")
    assert page.inner_text("h1") == "Component 64"
    page.click("nav a >> nth=0")
    assert page.inner_text("h1") == "Feature cards"
    assert page.complaints == []


@pytest.mark.slow
def test_64_cards_are_under_3_megabytes_and_soon_painted(best_model, see):
    from tl_weighted_pca import embedded

    stories = embedded.stories("heldout", 200)
    stats = wpca.collect(best_model, stories, HOOK, batch_size=32, progress=False)
    pca = wpca.pca(stats[HOOK])
    made = wpca.cards(
        best_model, stories, pca, 64, facts=embedded.FACTS, score=None, batch_size=32,
        compare=wpca.metric_pca(stats[HOOK]), positions=slice(1, None), progress=False,
    )  # fmt: skip
    assert len(made.to_html().encode()) < 3_000_000
    page = see(made)
    paints = [
        page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        for _ in range(3)
        if page.reload()
    ]
    assert min(paints) < 5000  # ms; some 200 here, and a busy machine makes pages wait


def luminance(color):
    channels = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(see, made, scheme):
    """WCAG AA, 4.5 to 1, for the text of every element, over what lies behind it."""
    page = see(made, color_scheme=scheme)
    open_all(page)
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
        const space = element.tagName === "I" && element.parentElement.tagName === "CODE";
        seen.set(JSON.stringify([color, layers]), space ? "space" : element.tagName);
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
        if name == "space":  # the sign for a space, an ornament
            continue
        low, high = sorted([luminance(text[:3]), luminance(behind)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, color, layers)


def test_it_prints_and_says_what_it_is(see, made):
    page = see(made)
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


def test_a_component_that_helps_by_its_absence_has_a_bar_to_the_other_side(
    see, best_model, heldout
):
    """A cost below zero: ablating the direction that hurts most, made by hand, on the loss negated."""
    few = heldout.select(range(8))
    stats = wpca.collect(best_model, few, HOOK, statistics=["activation"], progress=False)

    def gain(run):
        return -wpca.next_token_loss(run)

    made = wpca.cards(
        best_model, few, wpca.pca(stats[HOOK]), 3, contexts=1, score=gain, progress=False
    )
    assert min(float(card.cost) for card in made) < 0
    page = see(made)
    assert page.locator("table.overview .bar.less").count() == sum(card.cost < 0 for card in made)
    zero = page.evaluate(
        "getComputedStyle(document.querySelector('.overview .bar.less')).getPropertyValue('--zero')"
    )
    assert float(zero) > 0
    assert torch.tensor([float(card.cost) for card in made]).isfinite().all()
