"""The page of `camp serve`, in Chromium: it shows what the `Retriever` answers, and nothing of it is ever markup."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from camp_sdk import Index, Retriever
from camp_sdk.server.page import PAGE
from tests.helpers.serving import KEY, key_files, picture_bytes
from tests.helpers.tiny import CAPTIONS

pytest.importorskip("playwright", reason="the package playwright is not installed: pip install '.[dev]'")
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.helpers.browser import browsing, listening, opened

QUERY = "a small red circle"
COUNT, FIRST = 30, 24  # pictures, and those of the first page
SCRIPT = "<img src=x onerror=\"alert('script')\"><script>alert('script')</script>"
KEYS = [SCRIPT, *(f"photos/{number} ü.png" for number in range(1, COUNT))]
STRANGE = f"a red zebra {SCRIPT}"
NARROW = {"width": 360, "height": 740}
MARKED = "[aria-pressed=true]"


def metadata_of(number: int) -> dict[str, Any]:
    album = SCRIPT if number == 0 else ("rome", "paris")[number % 2]
    return {"album": album, "year": 2000 + number, "tags": ["sea", "sand"][: number % 3], "camera": {"maker": "Acme"}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    """The file of an index of pictures. Read only."""
    folder = tmp_path_factory.mktemp("page")
    paths = [folder / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(picture_bytes(number))
    with picture_retriever.open_index(folder / "photos.index", create=True, precision="float32") as index:
        index.add(paths, keys=KEYS, metadata=map(metadata_of, range(COUNT)))
    return folder / "photos.index"


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


def asked(page: Page) -> dict[str, str]:
    """What the page's address asks for."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def results(page: Page) -> list[str]:
    """The keys of the results, in their order."""
    return page.locator("#results a").evaluate_all("links => links.map((link) => link.dataset.key)")


def search(page: Page, text: str = QUERY) -> None:
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#results .score").first).to_be_visible()
    page.wait_for_url("**?q=*")


def ranked(retriever: Retriever, index: Index, count: int = FIRST, query: Any = QUERY, **options: Any) -> list[str]:
    return [match.key or "" for match in retriever.rank(query, index, count, **options)]


def words(page: Page) -> Locator:
    return page.locator("#words button")


def overlay(page: Page) -> str:
    """The pixels over the picture."""
    return str(page.locator("#overlay").evaluate("canvas => canvas.toDataURL()"))


def fits(page: Page) -> bool:
    """Whether nothing is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def transfer(page: Page, content: bytes, name: str = "mine.png", kind: str = "image/png") -> Any:
    """What a drop or paste of a file brings."""
    return page.evaluate_handle(
        """([text, name, type]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], name, { type }));
          return transfer;
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )


def drop(page: Page, *content: Any) -> None:
    page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, *content)})


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
    page.route("**/v1/search", held.append, times=1)
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


def seen_pixels(page: Page) -> set[int]:
    """How dark the overlay is, at its different places."""
    return set(
        page.locator("#overlay").evaluate(
            """canvas => {
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              return [...new Set(data.filter((_, place) => place % 4 === 3))];
            }"""
        )
    )


def test_the_strongest_region_is_the_clearest(page: Page) -> None:
    search(page)
    with page.expect_response("**/v1/explain") as answered:
        page.locator("#results a").first.click()
    explained = answered.value.json()
    page.locator("#words button", has_text="red").click()
    weights = explained["attention"][explained["words"].index("red")]
    centres = [[(left + right) / 2, (top + bottom) / 2] for left, top, right, bottom in explained["boxes"]]
    veils = page.locator("#overlay").evaluate(
        """(canvas, [centres, [width]]) => centres.map(([x, y]) => {
          const scale = canvas.width / width;
          return canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data[3];
        })""",
        [centres, explained["size"]],
    )
    order = sorted(range(len(weights)), key=weights.__getitem__)
    assert veils[order[-1]] < 10  # of 255: the strongest is as good as clear
    assert veils[order[0]] > veils[order[-1]]
    assert all(veils[a] >= veils[b] - 2 for a, b in zip(order, order[1:], strict=False))  # 2: rounding, twice


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
    page.evaluate(
        "clipboardData => dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", transfer(page, picture_bytes(6))
    )
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[6])
    (tmp_path / "chosen.png").write_bytes(mine)
    page.locator("#file").set_input_files(tmp_path / "chosen.png")
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[5])
    page.go_back()
    expect(page.locator("#results a").first).to_have_attribute("data-key", KEYS[6])


def test_pictures_similar_to_a_result(page: Page) -> None:
    search(page)
    page.locator("#results a").nth(2).click()
    first = page.locator("#facts dd").first.inner_text()
    page.get_by_role("button", name="Similar pictures").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#results a").first).to_have_attribute("data-key", first)  # it is most similar to itself
    assert asked(page) == {"like": first}


def test_a_file_that_is_no_picture_and_one_that_is_gone(page: Page) -> None:
    drop(page, b"words", "notes.txt", "text/plain")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture. Choose a JPEG, PNG or WebP file.")
    page.goto(f"{page.url}?picture=mine.png")
    expect(page.get_by_role("alert")).to_contain_text("the picture mine.png is not here any more. Choose it again.")


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


# What goes wrong

PROBLEMS = {
    422: ("The server cannot use this: too odd", "too odd"),
    413: ("This picture is larger than the server takes. Choose a smaller one.", ""),
    500: ("The server failed. Its log says why, under the request id-7.", ""),
    504: ("This took longer than the server allows.", ""),
    409: ("no global vectors here", "no global vectors here"),
    418: ("The server answered with status 418.", ""),
}


def problem(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    body = json.dumps({"status": status, "detail": detail, "request_id": "id-7"})
    return {"status": status, "headers": dict(headers or {}), "content_type": "application/problem+json", "body": body}


@pytest.mark.parametrize("status", PROBLEMS)
def test_errors_are_shown_in_words_and_can_be_tried_again(browser: Browser, address: str, status: int) -> None:
    shown, detail = PROBLEMS[status]
    with opened(browser, address, expect_errors=True) as page:
        page.route("**/v1/search", lambda route: route.fulfill(**problem(status, detail)), times=1)
        page.get_by_role("searchbox").fill(QUERY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text(shown)
        expect(page.locator("#results li")).to_have_count(0)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator(".notice")).to_have_count(0)


def test_errors_of_the_server_itself_are_shown(browser: Browser, address: str) -> None:
    with opened(browser, f'{address}?where={{"year":{{"near":1}}}}', expect_errors=True) as page:
        expect(page.get_by_role("alert").first).to_contain_text("has the operator 'near'")
        page.get_by_role("button", name="Clear filters").first.click()
        expect(page.locator("#results li")).to_have_count(FIRST)
        page.goto(f"{address}?where=oops")
        expect(page.get_by_role("alert").first).to_contain_text("the filters in the address of this page are not JSON")


@pytest.mark.parametrize(("status", "reason"), [(429, "The server is busy."), (503, "The server is starting")])
def test_a_busy_server_is_asked_again(browser: Browser, address: str, status: int, reason: str) -> None:
    with opened(browser, address, expect_errors=True) as page:
        page.clock.install()
        answer = problem(status, headers={"Retry-After": "7"})
        page.route("**/v1/search", lambda route: route.fulfill(**answer), times=1)
        page.get_by_role("searchbox").fill(QUERY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text(f"{reason}")
        expect(page.get_by_role("alert").first).to_contain_text("Trying again in 7\u00a0s")
        page.clock.run_for(4000)
        expect(page.get_by_role("alert").first).to_contain_text("in 3\u00a0s")
        page.clock.run_for(4000)
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator(".notice")).to_have_count(0)


def test_a_server_that_is_gone(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.route("**/v1/search", lambda route: route.fulfill(body="<html>a proxy"), times=1)
        page.get_by_role("searchbox").fill(QUERY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("What answers is not camp serve.")
        page.evaluate("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert").first).to_contain_text("The server cannot be reached.")


def test_nothing_to_find(browser: Browser, picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path) -> None:
    picture_retriever.open_index(tmp_path / "empty.index", create=True).close()
    settings = {"bundle": picture_bundle, "backend": "onnxruntime"}
    with listening(index=tmp_path / "empty.index", **settings) as address, opened(browser, address) as page:
        expect(page.get_by_text("The index is empty. Add pictures to search them.")).to_be_visible()
    picture_retriever.encode_images([picture_bytes(1), picture_bytes(2)]).save(tmp_path / "gallery")
    with listening(gallery=tmp_path / "gallery", **settings) as address, opened(browser, address) as page:
        expect(page.get_by_text("Type what you are looking for.")).to_be_visible()
        search(page)
        expect(page.get_by_role("complementary")).to_be_hidden()  # no metadata, no filters
        names = page.locator("#results .thumbnail").all_inner_texts()
        assert names == page.locator("#results .key").evaluate_all("keys => keys.map((key) => key.title)")


def test_filters_that_nothing_meets(page: Page) -> None:
    page.get_by_label("year, at most").fill("1999")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing meets these filters. Change or clear them.")).to_be_visible()


COUNTED = """
  window.links = { made: 0, revoked: 0 };
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => { links.made += 1; return createObjectURL.call(URL, blob); };
  URL.revokeObjectURL = (link) => { links.revoked += 1; revokeObjectURL.call(URL, link); };
"""


def test_a_key_is_asked_for_kept_and_used_for_pictures_too(
    browser: Browser, picture_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    settings = {"bundle": picture_bundle, "index": photos, "backend": "onnxruntime"} | key_files(tmp_path, reading=True)
    with listening(**settings) as address, opened(browser, f"{address}?q=a+star", expect_errors=True) as page:
        for given, why in (("wrong", "Ask whoever runs it."), (KEY, "The server does not know the key that you gave.")):
            expect(page.get_by_text(why)).to_be_visible()
            expect(page.get_by_label("Key", exact=True)).to_be_focused()
            page.keyboard.type(given)
            page.keyboard.press("Enter")
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator("#ask")).to_be_hidden()
        page.add_init_script(COUNTED)
        page.reload()
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator("#results img.here").first).to_be_visible()
        page.locator("#results a").first.click()
        page.wait_for_function("document.querySelector('#picture').naturalWidth > 0")
        assert str(page.locator("#results img").first.get_attribute("src")).startswith("blob:")
        page.goto(f"{address}?where={quote(json.dumps({'year': 1}))}")  # without results
        page.keyboard.press("Escape")
        search(page, "star")


def test_links_to_pictures_are_revoked(browser: Browser, picture_bundle: Path, photos: Path, tmp_path: Path) -> None:
    settings = {"bundle": picture_bundle, "index": photos, "backend": "onnxruntime"} | key_files(tmp_path, reading=True)
    with listening(**settings) as address, opened(browser, f"{address}health") as page:
        page.add_init_script(f"sessionStorage.setItem('camp-key', '{KEY}');{COUNTED}")
        page.goto(f"{address}?q=star")
        page.wait_for_function("links.made >= 24")
        page.get_by_label("year, at most").fill("1999")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Nothing meets these filters.")).to_be_visible()
        page.wait_for_function("links.made === links.revoked")


# Hostile texts, keys alone, small windows, colours


def test_markup_in_data_is_text(page: Page) -> None:
    search(page, STRANGE)
    expect(page.locator("#results li")).to_have_count(FIRST)
    if page.get_by_role("button", name="Show more").is_visible():
        page.get_by_role("button", name="Show more").click()
    expect(page.locator("#results li")).to_have_count(COUNT)
    opening = page.locator("#results a").nth(results(page).index(SCRIPT))
    expect(opening.locator(".key")).to_contain_text(SCRIPT)
    expect(opening.locator(".about")).to_contain_text(SCRIPT)
    opening.click()
    expect(page.locator("#title")).to_contain_text(SCRIPT)
    expect(page.locator("#facts dd").nth(1)).to_have_text(SCRIPT)
    expect(words(page).first).to_be_visible()
    assert page.title().startswith("a red zebra <img")
    filters = page.locator("#fields button", has_text=SCRIPT)
    expect(filters).to_have_count(1)
    assert page.locator("[onerror], [onclick], [style*=url]").count() == 0
    assert page.locator("script").count() == 1


def test_the_policy_stops_a_script_that_got_in(browser: Browser, address: str) -> None:
    """The other tests would see it: its violation is logged as an error."""
    with pytest.raises(AssertionError, match="Content Security Policy"), opened(browser, address) as page:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=alert(1)>')")
        page.wait_for_timeout(200)


def test_everything_can_be_done_with_keys(page: Page) -> None:
    expect(page.locator("#results li")).to_have_count(FIRST)
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    expect(page.locator("#results .score")).to_have_count(FIRST)
    visited = walk(page, lambda: page.evaluate("Boolean(document.activeElement.dataset.key)"))
    assert {"Choose a picture", "Search", "rome", "year, at least", "sea"} <= set(visited)
    page.keyboard.press("Enter")
    expect(words(page).first).to_be_visible()
    walk(page, lambda: page.evaluate("document.activeElement.classList.contains('word')"))
    expect(page.locator(f"#words {MARKED}")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    walk(page, lambda: page.evaluate("document.activeElement.id === 'more'"))
    page.keyboard.press("Enter")
    expect(page.locator("#results li")).to_have_count(COUNT)


def walk(page: Page, arrived: Any) -> list[str]:
    """Press Tab until something is reached; every step shows the focus."""
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        element = page.evaluate(
            """() => {
              const element = document.activeElement, box = element.closest(".box") ?? element;
              const { outlineStyle, outlineWidth } = getComputedStyle(element);
              const seen = (outlineStyle !== "none" && outlineWidth !== "0px") || getComputedStyle(box).boxShadow !== "none";
              return [element.ariaLabel || element.innerText, seen];
            }"""
        )
        assert element[1], element
        names.append(element[0].strip())
        if arrived():
            return names
    raise AssertionError(f"not reached: {names}")


@pytest.mark.parametrize("viewport", [NARROW, {"width": 1600, "height": 900}], ids=["narrow", "wide"])
def test_nothing_is_wider_than_the_window(browser: Browser, address: str, viewport: dict[str, int]) -> None:
    with opened(browser, address, viewport=viewport) as page:
        expect(page.locator("#results li")).to_have_count(FIRST)
        assert fits(page)
        search(page, "circle " + "unbreakable" * 30)
        page.locator("#filters").evaluate("filters => { filters.open = true; }")
        assert fits(page)
        page.locator("#results a").nth(results(page).index(SCRIPT) if SCRIPT in results(page) else 0).click()
        expect(words(page).first).to_be_visible()
        inside = page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        assert inside
        assert fits(page)


def test_the_file_needs_nothing_else() -> None:
    """No style attribute, no handler attribute, no other site, and one block each of style and script."""
    assert PAGE.content.count("<style>") == PAGE.content.count('<script type="module">') == 1
    markup = re.sub(r"<(style|script)\b.*?</\1>", "", PAGE.content, flags=re.DOTALL)
    assert re.findall(r"\s(?:style|on\w+)=", markup) == []
    assert set(re.findall(r"\w+://[^\s\"'`]*", PAGE.content)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", PAGE.content) == []
