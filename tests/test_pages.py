"""Pages of examples: every text is escaped, nothing outside is referenced, the demo's page shows its input."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from camp_sdk import Direction, Metrics
from examples._shared.pages import data_uri, small_picture, write_page

ROOT = Path(__file__).parents[1]


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
