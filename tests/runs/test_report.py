"""The report of a chain of runs: what they found, in order, on one page that needs nothing else."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from command_line import plain, run, works
from in_browser import SCREENS
from sample_cards import NASTY

import tl_weighted_pca as wpca
from tl_weighted_pca.feature_cards import page as cards_page
from tl_weighted_pca.runs.manifest import read_manifest, sha256
from tl_weighted_pca.runs.run_folder import RunFolder

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def chain(best_model, tokens, story_cards, tmp_path_factory):
    """Folders as the commands write them, with results of the package."""
    top = tmp_path_factory.mktemp("chain")
    stats = wpca.collect(best_model, tokens, HOOK, progress=False)
    with RunFolder(top / "run", ["collect", "--out", "run"], {"seed": 0}) as folder:
        folder.manifest["model"] = {"name": "gpt2-stories", "class": "HookedTransformer"}
        stats.save(folder / "moments.safetensors")
    bases = {"pca": wpca.pca(stats[HOOK]), "random": wpca.random_basis(stats[HOOK])}
    with RunFolder(top / "bases", ["basis", "run", "--out", "bases"]) as folder:
        folder.reads(top / "run" / "moments.safetensors")
        for name, basis in bases.items():
            basis.save(folder / f"{HOOK}.{name}.safetensors")
        wpca.plots.eigenvalue_spectra(bases).savefig(folder / f"{HOOK}.png", dpi=50)
    curves = wpca.ablation_curves(best_model, tokens, bases, ranks=[0, 32, 64], progress=False)
    with RunFolder(top / "ablation", ["ablate", "bases", "--out", "ablation"]) as folder:
        folder.reads(top / "bases")
        folder.manifest["left_out"] = {HOOK: {"3": 2, "7": 1}}
        curves.to_pandas().to_csv(folder / "ablation.csv", index=False)
        curves.plot().savefig(folder / f"{HOOK}.png", dpi=50)
    with RunFolder(top / "cards", ["cards", "bases/b", "--out", "cards"]) as folder:
        folder.reads(top / "bases" / f"{HOOK}.pca.safetensors")
        story_cards.save(folder / "cards.html")
        story_cards.to_pandas().to_csv(folder / "cards.csv", index=False)
    with RunFolder(top / "map", ["map", "--out", "map"]) as folder:
        found = wpca.dimension_map(
            best_model, tokens, [HOOK], heldout=tokens, bases=["pca"], shares=[0, 0.5, 1],
            progress=False,
        )  # fmt: skip
        found.save(folder / "map.safetensors")
        found.to_pandas().to_csv(folder / "map.csv", index=False)
    return {name: top / name for name in ("run", "bases", "ablation", "cards", "map")}, curves


@pytest.fixture(scope="module")
def page_of(chain, tmp_path_factory):
    folders, _ = chain
    path = tmp_path_factory.mktemp("report") / "report.html"
    wpca.report(reversed(folders.values())).save(path)
    return path


class Tables(HTMLParser):
    """The text of every cell of every table."""

    def __init__(self):
        super().__init__()
        self.tables, self.inside = [], False

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


def tables(html):
    parser = Tables()
    parser.feed(re.sub(r'srcdoc="[^"]*"', "", html))
    return parser.tables


def test_runs_come_after_what_they_read_in_whatever_order_they_were_given(chain):
    folders, _ = chain
    for order in (folders.values(), reversed(folders.values())):
        found = wpca.report(order)
        names = [run.folder.name for run in found.runs]
        assert sorted(names) == sorted(folders)
        for before, after in (("run", "bases"), ("bases", "ablation"), ("bases", "cards")):
            assert names.index(before) < names.index(after)
        read = {run.folder.name: {names[i] for i in found.sources(run)} for run in found.runs}
        assert read == {
            "run": set(), "bases": {"run"}, "ablation": {"bases"}, "cards": {"bases"}, "map": set()
        }  # fmt: skip
    assert repr(wpca.report(folders["run"])) == "RunReport(collect run)"
    assert len(wpca.report([folders["run"], str(folders["run"])]).runs) == 1


def test_it_holds_the_numbers_of_the_files(chain, page_of):
    folders, curves = chain
    html = page_of.read_text()
    found = tables(html)
    (moments,) = [t for t in found if t[0][0] == "hook point"]
    n = wpca.Collection.load(folders["run"] / "moments.safetensors")[HOOK].n_tokens
    assert moments[1][:3] == [HOOK, "64", f"{n:,}"]
    (bases,) = [t for t in found if t[0][0] == "Basis"]
    basis = wpca.Basis.load(folders["bases"] / f"{HOOK}.pca.safetensors")
    enough = int((basis.explained_ratio.cumsum(0) < 0.9).sum()) + 1
    share = f"{float(basis.explained_ratio[0]):.1%}"
    assert bases[1][:5] == [f"{HOOK}.pca", "pca", "64 of 64", share, str(enough)]
    (ablated,) = [t for t in found if t[0][0] == "Kept"]
    assert ablated[0] == ["Kept", "PCA", "random"]
    for row, k in zip(ablated[1:], curves.ranks, strict=True):
        assert row[0] == str(k)
        for cell, name in zip(row[1:], ("pca", "random"), strict=True):
            e = curves.excess(name)[curves.ranks.index(k)]
            shown = f"{e:.3f} [{e.low:.3f}, {e.high:.3f}]"
            assert cell == shown.replace("-0.000", "0.000")
    (ranks,) = [t for t in found if t[0][0] == "Hook point"]
    rank = wpca.DimensionMap.load(folders["map"] / "map.safetensors").smallest_ranks("pca")[HOOK]
    assert ranks[1] == [HOOK, "64", f"{rank:.0f} [{rank.low:.0f}, {rank.high:.0f}]"]
    digests = {digest for t in found if t[0][0] == "File" for _, digest in t[1:]}
    for folder in folders.values():
        manifest = read_manifest(folder)
        assert {*manifest["inputs"].values(), *manifest["outputs"].values()} <= digests
        assert manifest["versions"]["torch"] in html
    assert html.count("3 positions of outlying norm") == 1


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_opens_offline_and_fits(visit, page_of, width, scheme):
    page = visit(page_of, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator("img").evaluate_all("e => e.every((i) => i.naturalWidth > 0)")
    assert page.locator("section.run").count() == 5
    page.click("nav a >> nth=2")
    assert page.url.endswith("#r3")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.complaints == []


def test_the_cards_in_it_answer(visit, page_of):
    page = visit(page_of)
    page.locator("iframe").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('iframe').getBoundingClientRect().height > 100")
    frame = page.frame_locator("iframe")
    frame.locator("table.overview tbody a").nth(2).click()
    frame.locator("#c2 > details[open]").wait_for()
    frame.locator("#search").fill("no such token")
    assert frame.locator("article:visible").count() == 0
    assert page.locator("h1").inner_text() == "Report"
    assert page.complaints == []


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_axe_has_no_serious_findings(visit, page_of, axe, width, scheme):
    page = visit(page_of, width, color_scheme=scheme, bypass_csp=True)
    assert axe(page) == []


def test_hostile_text_stays_text(visit, tmp_path, hostile_cards):
    nasty = [n for n in NASTY if n.strip() and "/" not in n and "\x00" not in n]
    with RunFolder(tmp_path / '<img src=x onerror="alert(1)">', ["x<script>", *nasty]) as folder:
        folder.manifest["model"] = {"name": "</section><b>", "class": "<i>"}
        hostile_cards.save(folder / "cards.html")
        for i, name in enumerate(nasty):
            pd.DataFrame({name: nasty}).to_csv(folder / f"{i}{name}.csv", index=False)
        table = {"hook_point": "<u>", "basis": "<u>b", "rank": 0, "score": 1.0, "excess": 1.0}
        table |= {"excess_low": 1.0, "excess_high": 1.0}
        pd.DataFrame([table]).to_csv(folder / "ablation.csv", index=False)
    path = tmp_path / "report.html"
    wpca.report(folder.path).save(path)
    page = visit(path)
    assert page.complaints == []
    assert page.locator("img, b, i, u, script").count() == 0
    assert page.locator("text=<u>b").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_strange_page_in_a_folder_reaches_nothing(visit, tmp_path):
    """A folder from somebody else: its page has a script, which runs in a frame of no origin."""
    bad = "<!doctype html><head></head><body><script>parent.document.title = 'mine';</script>"
    with RunFolder(tmp_path / "cards", ["cards"]) as folder:
        (folder / "cards.html").write_text(bad)
    wpca.report(folder.path).save(tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    page.locator("iframe").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert page.title() == "Report: cards"
    assert any("origin" in each for each in page.complaints)  # what it tried was refused


def test_what_was_changed_since_is_left_out_and_said(chain, tmp_path):
    with RunFolder(tmp_path / "a", ["svd"]) as folder:
        (folder / "one.csv").write_text("x\n1\n")
        (folder / "two.csv").write_text("x\n2\n")
    (tmp_path / "a" / "one.csv").write_text("x\n100\n")
    html = wpca.report(tmp_path / "a").to_html()
    assert "Left out" in html and ">100<" not in html
    (shown,) = [t for t in tables(html) if t[0][0] == "x"]
    assert shown[1] == ["2"]


def test_long_tables_are_cut_and_say_so(tmp_path):
    with RunFolder(tmp_path / "a", ["interaction"]) as folder:
        pd.DataFrame({"x": range(1000)}).to_csv(folder / "edges.csv", index=False)
    html = wpca.report(tmp_path / "a").to_html()
    assert "The first 100 of 1000 rows." in html
    (shown,) = [t for t in tables(html) if t[0][0] == "x"]
    assert len(shown) == 101


def test_an_index_of_cards_says_where_their_pages_are(tmp_path):
    with RunFolder(tmp_path / "many", ["cards"]) as folder:
        (folder / "cards.html").write_text("<!doctype html><head></head>")
        (folder / "cards_components").mkdir()
        for i in range(3):
            (folder / "cards_components" / f"component-{i}.html").write_text("x")
    html = wpca.report(tmp_path / "many").to_html()
    assert "Not on this page: the 3 components&#39; own pages" in html
    assert (
        f"They are in {tmp_path / 'many' / 'cards_components'}; open cards.html beside it." in html
    )


def test_many_cards_are_all_in_it(visit, story_cards, tmp_path, monkeypatch):
    monkeypatch.setattr(cards_page, "ON_ONE_PAGE", 3)
    with RunFolder(tmp_path / "many", ["cards"]) as folder:
        story_cards.save(folder / "cards.html")
        (folder / "cards_whole.html").write_text(story_cards.to_html(), encoding="utf-8")
    assert len(list((tmp_path / "many" / "cards_components").iterdir())) == 4
    wpca.report(tmp_path / "many").save(tmp_path / "report.html")
    (tmp_path / "many").rename(tmp_path / "elsewhere")
    page = visit(tmp_path / "report.html", 390)
    assert "Not on this page" not in page.content()
    frame = page.frames[1]
    frame.click("table.overview a >> nth=3")
    frame.wait_for_selector("#c3 > details[open]")
    assert page.complaints == []


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No run folder was given"):
        wpca.report([])
    with pytest.raises(ValueError, match=r"has no manifest\.json: pass a folder that this program"):
        wpca.report(tmp_path)
    with RunFolder(tmp_path / "a", ["svd"]) as folder:
        (folder / "x.csv").write_text("x\n")
        with pytest.raises(ValueError, match="is not finished: a report is of finished runs"):
            wpca.report(folder.partial)


def test_on_the_command_line(chain, tmp_path):
    folders, _ = chain
    said = works("report", *folders.values(), "--out", tmp_path / "report")
    assert "report.html" in said
    html = (tmp_path / "report" / "report.html").read_text()
    assert html == wpca.report(folders.values()).to_html()
    inputs = read_manifest(tmp_path / "report")["inputs"]
    moments = folders["run"] / "moments.safetensors"
    assert inputs[str(moments)] == sha256(moments)
    (tmp_path / "empty").mkdir()
    refused = run("report", tmp_path / "empty", "--out", tmp_path / "other")
    assert refused.exit_code and "has no manifest.json" in plain(refused.output)


def test_in_a_notebook_it_is_a_frame(chain):
    folders, _ = chain
    shown = wpca.report(folders["ablation"])._repr_html_()
    assert shown.startswith("<iframe") and "srcdoc=" in shown
