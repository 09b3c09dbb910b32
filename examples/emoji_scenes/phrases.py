"""Names as captions use them, with an article where they take one: "an owl", "a glass of milk", "skis", "popcorn"."""

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
PLURAL = re.compile(r".*[^iosu]s|skis")  # not octopus, glass or rhinoceros
AN = re.compile(r"hour|(?!eu|ew|one|uni|uti)[aeiou]")


def phrase(name: str) -> str:
    """A name with its article, which depends on the head of the name: "glasses of milk" is plural, for example."""
    head = re.split(" (?:of|with|without|in|on|and|facing) ", name)[0].split()[-1]
    if head in UNCOUNTED or PLURAL.fullmatch(head):
        return name
    return f"an {name}" if AN.match(name) else f"a {name}"
