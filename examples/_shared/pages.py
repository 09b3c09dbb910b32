"""Pages that need nothing but themselves: templates whose every text is escaped, pictures written as text."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from camp_sdk.pictures import read_picture
from camp_sdk.runtime.files import write_aside


def write_page(path: Path, template: Path, page: dict[str, Any]) -> None:
    """Fill a template; it may extend others that lie in its folder or in the one above."""
    import jinja2  # here: where it is missing, commands say so in a line

    folders = jinja2.FileSystemLoader([template.parent, template.parent.parent])
    environment = jinja2.Environment(loader=folders, autoescape=True, undefined=jinja2.StrictUndefined)
    with write_aside(path) as aside:
        aside.write_text(environment.get_template(template.name).render(page), encoding="utf-8")


def data_uri(picture: Image.Image) -> str:
    """A picture as text for an <img> tag, so that the page needs no other file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def small_picture(path: Path, size: int) -> str:
    """A picture file, fitted into a square of that many pixels and over white as networks see it, as text for an <img> tag."""
    return data_uri(Image.fromarray(read_picture(path, size, size, path.name, "letterbox")))
