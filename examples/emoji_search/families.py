"""Families of emoji that are variants of one another.

Splits are made by family. A split by single emoji would test on trained pictures with, say, another hair colour.

Two emoji belong to one family if they share one of two keys, or if a chain of shared keys connects them:

- the code points, without signs of gender, skin, hair, joiners, variation selectors and a joined arrow ("facing
  right"); man, woman and person count as one code point, and so do their older forms, and boy, girl and child;
- the words of the name, without those of gender ("woman", "men's", "boy", the titles of the Clauses; "princess" counts
  as "prince") and of direction ("left", "downwards", "facing").

Roles (health worker, man health worker), couples, families and arrows therefore form one family each. All clock faces
have one code key, and so do all keycaps. If nothing remains of the code points, as with the female sign, the key is
the emoji's own code.
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
KEYCAPS = {ENCLOSING_KEYCAP, 0x1F51F}  # the keycap of ten is a single code point
GENDER_WORDS = {"man", "men", "woman", "women", "person", "people", "male", "female", "boy", "girl", "child", "adult"}
TITLES = {"santa", "mrs", "mx"}  # Santa Claus, Mrs. Claus and Mx Claus
DIRECTION_WORDS = {"left", "right", "up", "down", "leftwards", "rightwards", "upwards", "downwards", "facing"}
DROPPED_WORDS = GENDER_WORDS | TITLES | DIRECTION_WORDS | {"and"}  # "and": as in "woman and man holding hands"
SAME_WORD = {"princess": "prince"}


def code_key(hexcode: str) -> str:
    """The code points of an emoji without those that make it a variant: "1F9D1-1F393" for every kind of student."""
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
    """Group emoji into families: union-find over the two keys.

    Args:
        emoji: (hexcode, name) of each emoji.

    Returns:
        For each emoji, the index of the first emoji of its family.
    """
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
