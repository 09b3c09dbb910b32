"""The page at `/`: one file, whose scripts and styles are allowed by their hashes and by nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """The page.

    Args:
        content: The file.
        headers: The headers to send it with.
    """

    content: str
    headers: dict[str, str]

    @classmethod
    def of(cls, content: str) -> Page:
        """The page of a file's content."""
        sources = {f"{kind}-src": _hashes(content, tag) for kind, tag in (("script", "script"), ("style", "style"))}
        rules = {
            "default-src": "'none'",
            **{name: " ".join(hashes) or "'none'" for name, hashes in sources.items()},
            "img-src": "'self' blob: data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        policy = "; ".join(f"{name} {value}" for name, value in rules.items())
        return cls(content, {"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


def _hashes(content: str, tag: str) -> list[str]:
    """The sources of a content security policy that allow exactly the inline blocks of a kind."""
    blocks = re.findall(rf"<{tag}(?:\s[^>]*)?>(.*?)</{tag}>", content, re.DOTALL | re.IGNORECASE)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks]


PAGE = Page.of(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
