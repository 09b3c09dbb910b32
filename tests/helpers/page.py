"""What tests do with the page of `camp serve`, and the pictures that it shows them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Locator, Page, expect

from camp_sdk import Index, Retriever
from tests.helpers.serving import picture_bytes

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


def write_photos(folder: Path, retriever: Retriever) -> Path:
    """The file of an index of pictures."""
    paths = [folder / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(picture_bytes(number))
    with retriever.open_index(folder / "photos.index", create=True, precision="float32") as index:
        index.add(paths, keys=KEYS, metadata=map(metadata_of, range(COUNT)))
    return folder / "photos.index"


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
