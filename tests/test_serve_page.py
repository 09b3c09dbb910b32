"""The page of `camp serve`, in Chromium: it shows what the `Retriever` answers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from camp_sdk import Index, Retriever
from tests.helpers.serving import picture_bytes
from tests.helpers.tiny import CAPTIONS

pytest.importorskip("playwright", reason="the package playwright is not installed: pip install '.[dev]'")
from playwright.sync_api import Browser, Page, Route, expect

from tests.helpers.browser import browsing, listening, opened
from tests.helpers.page import (
    COUNT,
    FIRST,
    KEYS,
    MARKED,
    NARROW,
    QUERY,
    SCRIPT,
    asked,
    drop,
    fits,
    overlay,
    ranked,
    results,
    search,
    seen_pixels,
    transfer,
    words,
    write_photos,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    return write_photos(tmp_path_factory.mktemp("page"), picture_retriever)


@pytest.fixture(scope="module")
def index(photos: Path, picture_retriever: Retriever) -> Iterator[Index]:
    with picture_retriever.open_index(photos) as opened_index:
        yield opened_index


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def address(picture_bundle: Path, photos: Path) -> Iterator[str]:
    with listening(bundle=picture_bundle, index=photos, backend="onnxruntime") as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as found:
        yield found


# Searching


def test_a_search_shows_the_retrievers_ranking(page: Page, picture_retriever: Retriever, index: Index) -> None:
    expect(page.get_by_text("The first 24 pictures")).to_be_visible()
    assert results(page) == KEYS[:FIRST]
    search(page)
    matches = picture_retriever.rank(QUERY, index, FIRST)
    assert results(page) == [match.key for match in matches]
    assert page.locator("#results .score").all_inner_texts() == [f"{match.score:.3f}" for match in matches]
    assert asked(page) == {"q": QUERY}
    widths = page.locator("#results .track span").evaluate_all("bars => bars.map((bar) => bar.clientWidth)")
    assert widths == sorted(widths, reverse=True)
    expect(page.locator("#results img.here").first).to_be_visible()
    page.reload()
    expect(page.locator("#results .score")).to_have_count(FIRST)
    assert results(page) == [match.key for match in matches]
    expect(page.get_by_role("searchbox")).to_have_value(QUERY)


def test_missing_parts_are_said(page: Page) -> None:
    def with_missing_parts(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"partial": ["part-00000", "part-00002"]})

    page.route("**/v1/search", with_missing_parts, times=1)
    search(page)
    expect(page.locator("#unknown")).to_contain_text("do not answer: 2. Their pictures are missing")
    search(page, "a red star")
    expect(page.locator("#unknown")).to_have_text("")


def test_unknown_words_are_marked(page: Page, picture_retriever: Retriever, index: Index) -> None:
    search(page, "a red zebra")
    unknown = picture_retriever.rank("a red zebra", index).unknown_words
    assert "zebra" in unknown
    assert page.locator("#unknown mark").all_inner_texts() == list(unknown)
    search(page, "a red star")
    expect(page.locator("#unknown mark")).to_have_count(0)


def test_pages_go_on_and_back(page: Page, picture_retriever: Retriever, index: Index) -> None:
    search(page)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#results li")).to_have_count(COUNT)
    everything = ranked(picture_retriever, index, COUNT)
    assert results(page) == everything
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert asked(page) == {"q": QUERY, "page": "2"}
    page.go_back()
    expect(page.locator("#results li")).to_have_count(FIRST)
    page.go_back()
    expect(page.locator("#results .score")).to_have_count(0)
    page.goto(f"{page.url}?q={quote(QUERY)}&page=2")
    expect(page.locator("#results .score")).to_have_count(COUNT)
    assert results(page) == everything


def test_filters_come_from_the_metadata(page: Page, picture_retriever: Retriever, index: Index) -> None:
    search(page)
    filters = page.get_by_role("complementary", name="Filters")
    assert filters.locator("legend").all_inner_texts() == ["album", "year", "tags"]  # one value makes no filter
    filters.get_by_role("button", name="rome").click()
    filters.get_by_label("year, at least").fill("2010")
    page.keyboard.press("Tab")
    expect(filters.get_by_label("year, at most")).to_be_focused()
    where = {"album": {"in": ["rome"]}, "year": {"gte": 2010}}
    page.wait_for_url("**gte*")
    assert json.loads(asked(page)["where"]) == where
    expected = ranked(picture_retriever, index, where=where)
    expect(page.locator("#results li")).to_have_count(len(expected))
    assert results(page) == expected
    expect(page.locator("#active")).to_have_text("(2)")
    page.reload()
    expect(filters.locator(MARKED)).to_have_text(["rome"])
    expect(filters.get_by_label("year, at least")).to_have_value("2010")
    filters.get_by_role("button", name="sand").click()
    page.wait_for_url("**contains*")
    expect(page.locator("#results li")).to_have_count(len([*index.where({**where, "tags": {"contains": "sand"}})]))
    page.go_back()
    expect(page.locator("#results li")).to_have_count(len(expected))
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#results li")).to_have_count(FIRST)
    assert asked(page) == {"q": QUERY}


def test_items_are_listed_by_their_metadata_without_a_query(page: Page, index: Index) -> None:
    page.get_by_role("button", name="paris").click()
    expect(page.get_by_text("15 pictures", exact=True)).to_be_visible()
    assert results(page) == [item.key for item in index.where({"album": {"in": ["paris"]}})]


def test_conditions_of_the_address_that_no_control_shows_can_be_removed(page: Page, index: Index) -> None:
    where = {"or": [{"year": 2003}, {"year": 2005}]}
    page.goto(f"{page.url}?where={quote(json.dumps(where))}")
    expect(page.locator("#results li")).to_have_count(2)
    page.get_by_role("button", name="Remove or").click()
    expect(page.locator("#results li")).to_have_count(FIRST)


def test_a_newer_search_stops_the_older_one(page: Page, picture_retriever: Retriever, index: Index) -> None:
    held = list[Route]()
    page.route("**/v1/search", lambda route: held.append(route), times=1)
    page.get_by_role("searchbox").fill("a star")
    with page.expect_event("requestfailed"):
        page.keyboard.press("Enter")
        expect(page.locator("#progress")).to_be_visible()
        expect(page.get_by_text("Searching…")).to_be_visible()
        assert len(held) == 1
        search(page)
    expect(page.locator("#progress")).to_be_hidden()
    assert results(page) == ranked(picture_retriever, index)


# One item


def test_words_show_where_they_looked(page: Page, picture_retriever: Retriever, index: Index) -> None:
    search(page, "a red zebra")
    with page.expect_response("**/v1/explain") as answered:
        page.locator("#results a").first.click()
    explained = answered.value.json()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(words(page)).to_have_text(["a", "red", re.compile("^zebra")])
    assert page.locator("#words .strange").all_text_contents() == ["zebra, not known to the network"]
    strengths = [max(row) * gate for row, gate in zip(explained["attention"], explained["word_gates"], strict=True)]
    expect(page.locator(f"#words {MARKED}")).to_have_text("a" if strengths[1] > strengths[2] else "red")
    assert len(seen_pixels(page)) > 1
    shown = {overlay(page)}
    words(page).nth(0).focus()
    shown.add(overlay(page))
    words(page).nth(1).hover()
    expect(page.locator(f"#words {MARKED}")).to_have_text("red")
    shown.add(overlay(page))
    words(page).nth(2).click()
    expect(page.locator("#looked")).to_contain_text("“zebra”, which the network does not know, looked most at row")
    shown.add(overlay(page))
    assert len(shown) == 3  # one of them was shown first
    most = max(explained["attention"][3])
    expect(page.locator("#looked")).to_contain_text(f"{100 * most:.0f}% of its attention")


def test_the_strongest_region_is_the_clearest(page: Page) -> None:
    search(page)
    with page.expect_response("**/v1/explain") as answered:
        page.locator("#results a").first.click()
    explained = answered.value.json()
    page.locator("#words button", has_text="red").click()
    weights = explained["attention"][explained["words"].index("red")]
    centres = [[(left + right) / 2, (top + bottom) / 2] for left, top, right, bottom in explained["boxes"]]
    veils = page.locator("#overlay").evaluate(
        """(canvas, [centres, [width]]) => {
          const scale = canvas.width / width;
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const place = ([x, y]) => Math.floor(y * scale) * canvas.width + Math.floor(x * scale);
          return centres.map((centre) => data[4 * place(centre) + 3]);
        }""",
        [centres, explained["size"]],
    )
    order = sorted(range(len(weights)), key=weights.__getitem__)
    assert veils[order[-1]] < 10  # of 255: the strongest is as good as clear
    assert veils[order[0]] > veils[order[-1]]
    assert all(veils[a] >= veils[b] - 2 for a, b in itertools.pairwise(order))  # 2: rounding, twice


def test_results_are_left_and_reached_by_keys_and_by_history(page: Page) -> None:
    search(page)
    keys = results(page)
    page.locator("#results a").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert asked(page)["item"] == keys[1]
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**item={quote(keys[2], safe='').replace('%20', '+')}")
    expect(page.locator("#facts dd").first).to_have_text(keys[2])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#facts dd").first).to_have_text(keys[0])
    expect(page.get_by_role("button", name="Previous result")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#results a").first).to_be_focused()
    assert asked(page) == {"q": QUERY}
    page.go_forward()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(words(page)).to_have_count(len(QUERY.split()))
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert results(page) == keys


def test_an_item_of_an_address_opens_though_it_is_no_result(page: Page, index: Index) -> None:
    page.goto(f"{page.url}?q={quote(QUERY)}&where={quote(json.dumps({'year': 2003}))}&item={quote(KEYS[7])}")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(words(page)).to_have_count(4)
    texts = page.locator("#facts dd").all_inner_texts()
    assert texts == [KEYS[7], "paris", "2007", "sea", "Acme"]


# Pictures as queries


def test_a_dropped_pasted_or_chosen_picture_finds_similar_ones(
    page: Page, picture_retriever: Retriever, index: Index, tmp_path: Path
) -> None:
    mine = picture_bytes(5)
    expected = ranked(picture_retriever, index, query=mine, by="image")
    assert expected[0] == KEYS[5]
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer(page, mine)})
    expect(page.get_by_text("Drop the picture to find similar ones")).to_be_visible()
    drop(page, mine)
    expect(page.locator("#results .score")).to_have_count(FIRST)
    expect(page.locator("#drop")).to_be_hidden()
    assert results(page) == expected
    assert asked(page) == {"picture": "mine.png"}
    page.get_by_role("button", name="Remove this picture").click()
    expect(page.get_by_role("searchbox")).to_be_visible()
    pasted = transfer(page, picture_bytes(6))
    page.evaluate("clipboardData => dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", pasted)
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[6])
    (tmp_path / "chosen.png").write_bytes(mine)
    page.locator("#file").set_input_files(tmp_path / "chosen.png")
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[5])
    page.go_back()
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[6])


def test_pictures_similar_to_a_result(page: Page, picture_retriever: Retriever, index: Index) -> None:
    picture = page.request.get(f"{page.url}v1/items/{quote(KEYS[5], safe='')}/picture").body()
    page.locator("#results a").nth(5).click()
    page.get_by_role("button", name="Similar pictures").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#results .score")).to_have_count(FIRST)
    assert results(page) == ranked(picture_retriever, index, query=picture, by="image")
    assert asked(page) == {"like": KEYS[5]}


def test_a_file_that_is_no_picture_and_one_that_is_gone(page: Page) -> None:
    drop(page, b"words", "notes.txt", "text/plain")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture. Choose a JPEG, PNG or WebP file.")
    page.goto(f"{page.url}?picture=mine.png")
    expect(page.get_by_role("alert")).to_contain_text("the picture mine.png is not here any more. Choose it again.")


def test_what_comes_before_the_page_knows_the_server_is_not_lost(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}health") as page:
        held = list[Route]()
        page.route("**/v1/models", lambda route: held.append(route), times=2)
        page.goto(address, wait_until="domcontentloaded")
        drop(page, picture_bytes(5))
        held.pop(0).continue_()
        expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[5])
        page.goto(address, wait_until="domcontentloaded")
        page.get_by_role("searchbox").fill("a st")
        held.pop(0).continue_()
        expect(page.locator("#results li")).to_have_count(FIRST)
        expect(page.get_by_role("searchbox")).to_have_value("a st")


def test_texts_that_fit_a_picture(
    browser: Browser, picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path
) -> None:
    with picture_retriever.open_index(tmp_path / "texts.index", create=True, kind="text") as texts:
        texts.add([*CAPTIONS, SCRIPT])
        expected = ranked(picture_retriever, texts, query=picture_bytes(3))
    settings = {"bundle": picture_bundle, "index": tmp_path / "texts.index", "backend": "onnxruntime"}
    with listening(**settings) as address, opened(browser, address, viewport=NARROW) as page:
        expect(page.locator("#results li")).to_have_text([*CAPTIONS, SCRIPT])
        expect(page.get_by_role("searchbox")).to_be_hidden()
        drop(page, picture_bytes(3))
        expect(page.locator("#results .score")).to_have_count(len(expected))
        assert results(page) == expected
        page.locator("#results a").nth(expected.index("star")).click()
        expect(words(page)).to_have_text(["star"])
        assert len(seen_pixels(page)) > 1
        assert fits(page)
