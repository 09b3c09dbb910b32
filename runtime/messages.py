"""How messages show what came from elsewhere, whatever it is: values of a file, names, queries."""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_TEXT = 80
MAX_ITEMS = 4
MAX_BITS = 256
JOINER = "\u200d"  # joins emoji to one, and letters in some scripts


def brief(value: Any, levels: int = 2) -> str:
    """A value as a message shows it: short, and made in little time and memory.

    `repr`, `str` and `json.dumps` are unsuitable for values of a file. A list that holds another list twice, and that
    one a third twice, and so on, has a few bytes in the file but a text of gigabytes.

    Args:
        value: Any value.
        levels: How deep lists and tuples are shown.
    """
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return repr(value) if bits <= MAX_BITS else f"a whole number of {bits} bits"
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= MAX_TEXT else f"{value[: MAX_TEXT - 3]!r}..."
    if isinstance(value, (list, tuple)) and levels:
        shown = [brief(item, levels - 1) for item in value[:MAX_ITEMS]]
        shown += ["..."] if len(value) > MAX_ITEMS else []
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"[{', '.join(shown)}]" if isinstance(value, list) else f"({', '.join(shown)}{comma})"
    article = "an" if type(value).__name__[:1] in "aeiouAEIOU" else "a"
    return f"{article} {type(value).__name__}"


def visible(text: str) -> str:
    """Text on one line that is safe for a terminal.

    Line ends, other control characters, and characters that change the direction of what follows are written as
    escapes.
    """
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != JOINER else c for c in text
    )
