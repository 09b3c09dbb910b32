"""Self-contained pages: templates that escape every text, with pictures embedded as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from camp_sdk.pictures import read_picture
from camp_sdk.runtime.files import write_aside


def write_page(path: Path, template: Path, page: dict[str, Any]) -> None:
    """Fill a template and write the page.

    Args:
        path: the HTML file to write.
        template: the template; it may extend others in its own folder or in the folder above.
        page: the template's values; a missing one is an error.
    """
    import jinja2  # here: without it, commands report the missing package in one line

    folders = jinja2.FileSystemLoader([template.parent, template.parent.parent])
    environment = jinja2.Environment(loader=folders, autoescape=True, undefined=jinja2.StrictUndefined)
    with write_aside(path) as aside:
        aside.write_text(environment.get_template(template.name).render(page), encoding="utf-8")


def data_uri(picture: Image.Image) -> str:
    """A picture as the text of an <img> source, so that the page needs no other file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def small_picture(path: Path, size: int) -> str:
    """Read a picture file as networks see it, fitted into a square and over white, as the text of an <img> source.

    Args:
        path: the picture file.
        size: width and height of the square in pixels.
    """
    return data_uri(Image.fromarray(read_picture(path, size, size, path.name, "letterbox")))
