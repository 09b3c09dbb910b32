"""The page of `camp serve` when things go wrong, with hostile texts, with keys alone, and in small windows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from camp_sdk import Retriever
from camp_sdk.server.page import PAGE
from tests.helpers.serving import KEY, key_files, picture_bytes

pytest.importorskip("playwright", reason="the package playwright is not installed: pip install '.[dev]'")
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import browsing, listening, opened, until
from tests.helpers.page import (
    COUNT,
    FIRST,
    MARKED,
    NARROW,
    QUERY,
    SCRIPT,
    STRANGE,
    fits,
    results,
    search,
    words,
    write_photos,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    return write_photos(tmp_path_factory.mktemp("page"), picture_retriever)


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


# What goes wrong

PROBLEMS = {
    422: ("The server cannot use this: too odd", "too odd"),
    413: ("This picture is larger than the server takes. Choose a smaller one.", ""),
    500: ("The server failed. Its log says why, under the request id-7.", ""),
    504: ("This took longer than the server allows.", ""),
    409: ("no global vectors here", "no global vectors here"),
    418: ("The server answered with status 418.", ""),
}


def answer_once(page: Page, status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> None:
    """Answer the next search with an error."""
    body = json.dumps({"status": status, "detail": detail, "request_id": "id-7"})
    kind = "application/problem+json"
    options: dict[str, Any] = {"status": status, "headers": dict(headers or {}), "content_type": kind, "body": body}
    page.route("**/v1/search", lambda route: route.fulfill(**options), times=1)


def test_errors_are_shown_in_words_and_can_be_tried_again(browser: Browser, address: str) -> None:
    with opened(browser, address, expect_errors=True) as page:
        for status, (shown, detail) in PROBLEMS.items():
            answer_once(page, status, detail)
            page.get_by_role("searchbox").fill(f"a star {status}")
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


def test_a_busy_server_is_asked_again(browser: Browser, address: str) -> None:
    with opened(browser, address, expect_errors=True) as page:
        page.clock.install()
        for status, reason in ((429, "The server is busy."), (503, "The server is starting")):
            answer_once(page, status, headers={"Retry-After": "7"})
            page.get_by_role("searchbox").fill(f"a star {status}")
            page.keyboard.press("Enter")
            alert = page.get_by_role("alert").first
            expect(alert).to_contain_text(re.compile(f"{reason}.*Trying again in 7\u00a0s"))
            page.clock.run_for(4000)
            expect(alert).to_contain_text("in 3\u00a0s")
            page.clock.run_for(4000)
            expect(page.locator(".notice")).to_have_count(0)
            expect(page.locator("#results .score")).to_have_count(FIRST)


def test_a_server_that_is_gone(browser: Browser, address: str) -> None:
    with opened(browser, address, expect_errors=True) as page:
        page.route("**/v1/search", lambda route: route.abort("connectionrefused"))
        page.route("**/v1/search", lambda route: route.fulfill(body="<html>a proxy"), times=1)
        page.get_by_role("searchbox").fill(QUERY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("What answers is not camp serve.")
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
  window.links = { made: 0, live: new Set() };
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => {
    const link = createObjectURL.call(URL, blob);
    links.made += 1;
    links.live.add(link);
    return link;
  };
  URL.revokeObjectURL = (link) => {
    links.live.delete(link);
    revokeObjectURL.call(URL, link);
  };
"""


def test_a_key_is_asked_for_kept_and_used_for_pictures_too(
    browser: Browser, picture_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    settings = {"bundle": picture_bundle, "index": photos, "backend": "onnxruntime"} | key_files(tmp_path, reading=True)
    with listening(**settings) as address, opened(browser, f"{address}?q=a+star", expect_errors=True) as page:
        for given, why in (("wrong", "Ask whoever runs it."), (KEY, "The server does not know the key that you gave.")):
            expect(page.get_by_text(why)).to_be_visible()
            expect(page.locator("#progress")).to_be_hidden()  # it waits for the key, not for the server
            expect(page.get_by_label("Key", exact=True)).to_be_focused()
            page.keyboard.type(given)
            page.keyboard.press("Enter")
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator("#ask")).to_be_hidden()
        page.reload()
        expect(page.locator("#results .score")).to_have_count(FIRST)
        expect(page.locator("#results img.here").first).to_be_visible()
        page.locator("#results a").first.click()
        until(page, "document.querySelector('#picture').naturalWidth > 0")
        assert str(page.locator("#results img").first.get_attribute("src")).startswith("blob:")


def test_links_to_pictures_are_revoked(browser: Browser, picture_bundle: Path, photos: Path, tmp_path: Path) -> None:
    settings = {"bundle": picture_bundle, "index": photos, "backend": "onnxruntime"} | key_files(tmp_path, reading=True)
    with listening(**settings) as address, opened(browser, f"{address}health") as page:
        page.add_init_script(f"sessionStorage.setItem('camp-key', '{KEY}');{COUNTED}")
        page.goto(f"{address}?q=star")
        until(page, "links.made >= 24")
        page.get_by_label("year, at most").fill("1999")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Nothing meets these filters.")).to_be_visible()
        until(page, "links.live.size === 0")


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

    def let_it_in() -> None:
        with opened(browser, address) as page, page.expect_console_message():
            page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=alert(1)>')")

    with pytest.raises(AssertionError, match="Content Security Policy"):
        let_it_in()


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
              const outlined = outlineStyle !== "none" && outlineWidth !== "0px";
              const seen = outlined || getComputedStyle(box).boxShadow !== "none";
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
    assert set(re.findall(r"\w+://[^\s\"'`]*", PAGE.content)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", PAGE.content) == []
