"""Which emoji are variants of one another: a split by pictures would test on what was trained on, in another hair colour.

Two emoji are of one family if they share one of two keys, or each shares one with a third:

- the code points, without signs of gender, skin, hair, joiners, variation selectors and a joined arrow ("facing right");
  man, woman and person are one code point, as are the old ones, and boy, girl and child;
- the words of the name, without those of gender ("woman", "men's", "boy", "princess" is "prince", the titles of the
  Clauses) and of direction ("left", "downwards", "facing").

So roles (health worker, man health worker), couples, families and the arrows are a family each. All clock faces are one by
their code points, and so are the keycaps. A key of which nothing remains, as of the female sign, is the emoji's own code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

GENDER_SIGNS = {0x2640, 0x2642}
SKINS, HAIRS = set(range(0x1F3FB, 0x1F400)), set(range(0x1F9B0, 0x1F9B4))
JOINER, SELECTOR, ARROW, ENCLOSING_KEYCAP = 0x200D, 0xFE0F, 0x27A1, 0x20E3
DROPPED = GENDER_SIGNS | SKINS | HAIRS | {JOINER, SELECTOR, ARROW}
PERSON, CHILD, OLDER = 0x1F9D1, 0x1F9D2, 0x1F9D3
SAME_CODE = {0x1F468: PERSON, 0x1F469: PERSON, 0x1F466: CHILD, 0x1F467: CHILD, 0x1F474: OLDER, 0x1F475: OLDER}
CLOCKS = set(range(0x1F550, 0x1F568))
KEYCAPS = {ENCLOSING_KEYCAP, 0x1F51F}  # ten is one code point
GENDER_WORDS = {"man", "men", "woman", "women", "person", "people", "male", "female", "boy", "girl", "child", "adult"}
TITLES = {"santa", "mrs", "mx"}  # of the Clauses
DIRECTION_WORDS = {"left", "right", "up", "down", "leftwards", "rightwards", "upwards", "downwards", "facing"}
DROPPED_WORDS = GENDER_WORDS | TITLES | DIRECTION_WORDS | {"and"}  # "woman and man holding hands"
SAME_WORD = {"princess": "prince"}


def code_key(hexcode: str) -> str:
    """The code points of an emoji without what makes it a variant, such as "1F9D1-1F393" for a student of any kind."""
    codes = [int(code, 16) for code in hexcode.split("-")]
    if CLOCKS & set(codes):
        return "clock"
    if KEYCAPS & set(codes):
        return "keycap"
    kept = [SAME_CODE.get(code, code) for code in codes if code not in DROPPED]
    return "-".join(f"{code:X}" for code in kept) or hexcode


def word_key(name: str) -> str:
    """The words of a name without those of gender and direction: "health worker" for "woman health worker"."""
    words = re.findall(r"[^\W_]+", re.sub("['\u2019]s\\b", "", name.lower()))
    return " ".join(SAME_WORD.get(word, word) for word in words if word not in DROPPED_WORDS)


def group_families(emoji: Iterable[tuple[str, str]]) -> list[int]:
    """For each (hexcode, name) the number of the first one of its family: union-find over the two keys."""
    parents: list[int] = []
    first_with: dict[tuple[str, str], int] = {}

    def root(item: int) -> int:
        while parents[item] != item:
            item = parents[item]
        return item

    for number, (hexcode, name) in enumerate(emoji):
        parents.append(number)
        for key in (("code", code_key(hexcode)), ("words", word_key(name))):
            one, other = sorted((root(number), root(first_with.setdefault(key, number))))
            parents[other] = one
    return [root(number) for number in range(len(parents))]
