"""Record what NLTK's `word_tokenize` makes of captions, for tests/test_nltk_words.py.

    NLTK_DATA=FOLDER python -m tests.helpers.record_nltk_words

FOLDER holds NLTK's `punkt_tab`, which `python -m nltk.downloader -d FOLDER punkt_tab` fetches. Writes
tests/released/nltk_words.jsonl: a line with the version of NLTK, then one `{"text": ..., "tokens": [...]}` a line.
"""

from __future__ import annotations

import json
import sys

from tests.helpers.nltk_captions import RECORDED, captions


def main() -> int:
    """Write the file; the exit code is 1 where NLTK or its data are missing."""
    try:
        import nltk
        from nltk.tokenize import word_tokenize

        word_tokenize("Once. Twice.")
    except (ImportError, LookupError):
        sys.stderr.write(
            "needs nltk, and its punkt_tab: python -m nltk.downloader -d FOLDER punkt_tab; set NLTK_DATA=FOLDER\n"
        )
        return 1
    lines = [
        {"nltk": nltk.__version__},
        *({"text": text, "tokens": word_tokenize(text.lower())} for text in captions()),
    ]
    RECORDED.write_text(
        "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
