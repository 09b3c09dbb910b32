"""A name as a caption says it, with an article where it takes one: "an owl", "a glass of milk", "skis", "popcorn"."""

from __future__ import annotations

import re

UNCOUNTED = {
    *(
        "bacon",
        "bread",
        "broccoli",
        "butter",
        "coral",
        "dna",
        "fondue",
        "food",
        "garlic",
        "ice",
        "liquid",
        "meat",
        "money",
    ),
    *("oden", "popcorn", "rice", "sake", "salt", "soap", "spaghetti", "sushi", "thread", "yarn"),
    *("badminton", "bowling", "hockey", "lacrosse", "pong", "tennis"),
}
PLURAL = re.compile(r".*[^iosu]s|skis")  # but octopus, glass, rhinoceros
AN = re.compile(r"hour|(?!eu|ew|one|uni|uti)[aeiou]")


def phrase(name: str) -> str:
    """What the name's head is decides about the article: "glasses of milk" would be plural, for all its milk."""
    head = re.split(" (?:of|with|without|in|on|and|facing) ", name)[0].split()[-1]
    if head in UNCOUNTED or PLURAL.fullmatch(head):
        return name
    return f"an {name}" if AN.match(name) else f"a {name}"
