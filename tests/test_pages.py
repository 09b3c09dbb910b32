"""Pages of examples: every text is escaped, nothing outside is referenced, the demo's page shows its input."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from camp_sdk import Direction, Metrics
from examples._shared.pages import data_uri, small_picture, write_page

ROOT = Path(__file__).parents[1]


PAGES = ("camp_sdk/server/page.html", "examples/page.html", "docs/site.css")


def look_of(name: str) -> list[dict[str, str]]:
    """The colours and type of a page, when it is light and when it is dark."""
    text = (ROOT / name).read_text()
    block = text[text.index("/* Colours and type: the same") : text.index("/* End of what is the same. */")]
    light, dark = (dict(re.findall(r"(--[\w-]+): ([^;]+);", rule)) for rule in re.findall(r"\{([^{}]*)\}", block))
    return [light, light | dark]


def luminance(colour: str) -> float:
    """Of a colour such as #fff or #1c2028, as WCAG defines it."""
    digits = colour.removeprefix("#")
    wide = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    shares = [int(wide[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_all_pages_have_one_look() -> None:
    first, *others = map(look_of, PAGES)
    assert len(first[0]) > 10
    assert all(other == first for other in others)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_borders_are_seen(scheme: int) -> None:
    """WCAG AA: 4.5 for texts, 3 for the borders of controls."""
    look = look_of(PAGES[0])[scheme]
    for text in ("ink", "soft", "accent", "good", "warn"):
        for behind in ("paper", "ground", "well"):
            assert contrast(look[f"--{text}"], look[f"--{behind}"]) >= 4.5, (text, behind)
    assert contrast(look["--on-accent"], look["--accent"]) >= 4.5
    assert contrast(look["--paper"], look["--warn"]) >= 4.5
    assert min(contrast(look["--edge"], look[f"--{behind}"]) for behind in ("paper", "ground")) >= 3


def decoded(uri: str) -> Image.Image:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_picture_survives_as_text() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(data_uri(Image.fromarray(pixels)))), pixels)


def test_a_small_picture_is_square_whole_and_over_white(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    wide.paste((0, 0, 0, 0), (20, 0, 40, 20))  # transparent black
    wide.save(tmp_path / "wide.png")
    pixels = np.asarray(decoded(small_picture(tmp_path / "wide.png", 24)))
    assert pixels.shape == (24, 24, 3)
    assert pixels[12, 4].tolist() == [255, 0, 0]
    assert pixels[12, 20].tolist() == pixels[1, 4].tolist() == [255, 255, 255]


def test_texts_are_escaped_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "base.html").write_text("<p>{% block body %}{% endblock %}</p>")
    template = tmp_path / "inner" / "page.html"
    template.parent.mkdir()
    template.write_text('{% extends "base.html" %}{% block body %}{{ text }}{% endblock %}')
    write_page(tmp_path / "page.html", template, {"text": '<b> & "'})
    assert (tmp_path / "page.html").read_text() == "<p>&lt;b&gt; &amp; &#34;</p>"
    with pytest.raises(jinja2.UndefinedError, match="text"):
        write_page(tmp_path / "page.html", template, {})
    assert "&lt;b&gt;" in (tmp_path / "page.html").read_text()  # the old one is still there


def test_the_page_of_the_demo(tmp_path: Path) -> None:
    side = Direction(12.5, 50.0, 87.5, 3.0)
    match = {"rank": 1, "score": 0.75, "picture": "data:,", "name": "0.png", "right": True, "true": True}
    page = {
        "cards": [
            {
                "query": "a <red> star",
                "place": 2,
                "matches": [match],
                "words": [{"word": "red", "picture": "data:,", "peak": "0.50"}],
            },
            {"query": "free", "place": None, "matches": [match | {"right": False}], "words": []},
        ],
        "rows": [("PyTorch", Metrics(side, side))],
        "oracle": (93.1, 88.2),
        "protocol": "8 images x 40 captions",
        "variant": "paper",
        "parity": 1e-6,
        "minutes": 7.5,
        "version": "1",
        "counts": {"train": 5000, "test": 300},
    }
    write_page(tmp_path / "index.html", ROOT / "examples/demo_page.html", page)
    text = (tmp_path / "index.html").read_text()
    assert "a &lt;red&gt; star" in text
    assert "its own picture ranks 2 of 300" in text
    assert text.count('class="match right"') == text.count(">also true<") == 1
    assert text.count("<style>") == text.count("</html>") == 1
