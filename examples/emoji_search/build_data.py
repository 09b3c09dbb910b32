"""Build a picture data set of emoji: about 1,600 concepts in the artwork of three makers, with names and search words.

    python -m examples.emoji_search.fetch --output build/emoji/packages
    python -m examples.emoji_search.build_data --packages build/emoji/packages --output build/emoji/data

A concept is an emoji that Fluent 3D, Noto and Twemoji all draw, without skin tone; flags and components are excluded.
Its pictures are copied byte for byte and share their captions: the name, the Unicode name if it differs, the tags of
emojibase and the keywords of emojilib. A caption that several concepts share identifies none of them and is excluded.

Splits are made by family (families.py), so that no variant of a tested emoji is in the training data. Train: the three
pictures of each concept next to each other, in emoji order. Dev: one picture per concept, alternating between the
styles. Test: every concept in every style, ordered by style, so that ``camp eval --folds 3`` measures each style by
itself and prints the mean.

``{split}/metadata.jsonl`` has, besides ``file_name`` and ``captions``: ``kinds`` (the kind of each caption),
``concept``, ``family``, ``style``, ``group``, ``subgroup`` and ``hexcode``. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import is_empty, write_aside
from camp_sdk.terminal import progress, run_command
from examples.emoji_search.families import group_families
from examples.emoji_search.packages import FLUENT, KEYWORDS, LABELS, NOTO, PACKAGES, STYLES, TWEMOJI, read_package

NAME, UNICODE_NAME, TAGS, WORDS = "name", "unicode name", "tags", "keywords"
LEFT_OUT = ("component", "flags")
PICTURES = {FLUENT: r"assets/[^/]+\.webp", NOTO: r"img/google/64/[^/]+\.png", TWEMOJI: r"img/twitter/64/[^/]+\.png"}
LICENCES = "LICENSE"

Pictures = dict[str, tuple[str, bytes]]  # by bare code: the suffix of the file's name, and its bytes
Picture = tuple["Concept", str]  # a concept and its style


@dataclass(frozen=True)
class Concept:
    """An emoji, independent of its style.

    Args:
        name: its name.
        hexcode: its code points in hexadecimal.
        group: its Unicode group.
        subgroup: its Unicode subgroup.
        captions: its captions by their kind.
        family: the name of the first emoji of its family.
    """

    name: str
    hexcode: str
    group: str
    subgroup: str
    captions: dict[str, str]
    family: str = ""

    @property
    def code(self) -> str:
        return bare_code(self.hexcode)


def bare_code(hexcode: str) -> str:
    """The common form of the packages' hexcodes of one emoji: upper case, without variation selectors."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def plain(text: str) -> str:
    """A text as people type it: lower case, straight apostrophes, no quotation marks."""
    return " ".join(re.sub('[\u201c\u201d"]', "", text.lower().replace("\u2019", "'").replace("_", " ")).split())


def phrase(entries: Iterable[str]) -> str:
    """Search words as one caption: each word once, without punctuation at its ends, and no emoticons such as ":D"."""
    words = " ".join(plain(entry) for entry in entries if re.fullmatch(r"\w|.*\w\w.*", entry)).split()
    bare = (re.sub(r"^\W+|\W+$", "", word) for word in words)
    return " ".join(dict.fromkeys(word for word in bare if word))


def read_pictures(packages: Path, style: str) -> Pictures:
    """Every picture of a style, by its bare code."""
    pictures: Pictures = {}
    for name, content in sorted(read_package(packages, style, PICTURES[style]).items()):
        path = PurePosixPath(name)
        pictures.setdefault(bare_code(path.stem), (path.suffix, content))
    return pictures


def _read_json(packages: Path, part: str, name: str) -> Any:
    found = read_package(packages, part, re.escape(name))
    if name not in found:
        raise BundleError(f"{PACKAGES[part].file_name} has no {name}: fetch it again")
    return json.loads(found[name])


def read_concepts(packages: Path) -> list[Concept]:
    """Every emoji of the included groups, in emoji order, with its captions; ``family`` is still empty."""
    groups = _read_json(packages, LABELS, "meta/groups.json")
    unicode_names = {bare_code(e["unified"]): plain(e["name"]) for e in _read_json(packages, NOTO, "emoji.json")}
    keywords = {
        name.replace("\ufe0f", ""): words
        for name, words in _read_json(packages, KEYWORDS, "dist/emoji-en-US.json").items()
    }
    concepts = []
    for emoji in sorted(_read_json(packages, LABELS, "en/data.json"), key=lambda emoji: int(emoji.get("order", 0))):
        if "group" not in emoji or (group := groups["groups"][str(emoji["group"])]) in LEFT_OUT:
            continue
        name, code = plain(emoji["label"]), bare_code(emoji["hexcode"])
        captions = {
            NAME: name,
            UNICODE_NAME: unicode_names.get(code, ""),
            TAGS: phrase(emoji.get("tags", [])),
            WORDS: phrase(keywords.get(emoji["emoji"].replace("\ufe0f", ""), [])),
        }
        subgroup = groups["subgroups"][str(emoji["subgroup"])]
        concepts.append(Concept(name, emoji["hexcode"], group, subgroup, captions))
    return concepts


def with_families(concepts: list[Concept]) -> list[Concept]:
    """The concepts with their ``family`` set."""
    firsts = group_families((concept.hexcode, concept.name) for concept in concepts)
    return [replace(c, family=concepts[first].name) for c, first in zip(concepts, firsts, strict=True)]


def with_own_captions(concepts: list[Concept]) -> list[Concept]:
    """The concepts without captions that are empty, repeated or shared by several concepts; names always stay."""
    distinct = [{caption: kind for kind, caption in reversed(c.captions.items()) if caption} for c in concepts]
    uses = Counter(caption for captions in distinct for caption in captions)
    return [
        replace(c, captions={k: text for text, k in reversed(own.items()) if uses[text] == 1 or k == NAME})
        for c, own in zip(concepts, distinct, strict=True)
    ]


def split_concepts(concepts: list[Concept], counts: dict[str, int], seed: int) -> dict[str, list[Concept]]:
    """Shuffle the families and assign them to the splits.

    Each split takes the families that still fit until it has exactly its count of concepts. The rest is train.

    Args:
        concepts: all concepts, with their families.
        counts: concepts of each split other than train.
        seed: seed of the shuffle.

    Raises:
        InputError: whole families cannot make up a count, or no concepts are left for train.
    """
    sizes = Counter(concept.family for concept in concepts)
    families = list(sizes)
    random.Random(seed).shuffle(families)
    owner = dict.fromkeys(families, "train")
    for split, count in counts.items():
        room = count
        for family in families:
            if owner[family] == "train" and sizes[family] <= room:
                owner[family] = split
                room -= sizes[family]
        if room:
            raise InputError(
                f"--{split} {count}: whole families give only {count - room} of the concepts; ask for fewer"
            )
    splits = {split: [c for c in concepts if owner[c.family] == split] for split in ("train", *counts)}
    if not splits["train"]:
        raise InputError(f"no concepts are left to train on: there are {len(concepts)}; ask for fewer")
    return splits


def arrange(splits: dict[str, list[Concept]]) -> dict[str, list[Picture]]:
    """The pictures of each split, in the order that the module's docstring describes."""
    return {
        "train": [(concept, style) for concept in splits["train"] for style in STYLES],
        "dev": [(concept, STYLES[number % len(STYLES)]) for number, concept in enumerate(splits["dev"])],
        "test": [(concept, style) for style in STYLES for concept in splits["test"]],
    }


def write_split(folder: Path, pictures: list[Picture], drawn: dict[str, Pictures]) -> None:
    """Write the pictures and the metadata of a split.

    Args:
        folder: folder to create.
        pictures: the split's pictures, in order.
        drawn: the files of every style.
    """
    folder.mkdir()
    lines = []
    for concept, style in progress(pictures, f"writing {folder.name}"):
        suffix, content = drawn[style][concept.code]
        name = f"{concept.code.lower()}-{style}{suffix}"
        (folder / name).write_bytes(content)
        row = {
            "file_name": name,
            "captions": list(concept.captions.values()),
            "kinds": list(concept.captions),
            "concept": concept.name,
            "family": concept.family,
            "style": style,
            "group": concept.group,
            "subgroup": concept.subgroup,
            "hexcode": concept.hexcode,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_notices(folder: Path, packages: Path) -> None:
    """Write NOTICE.md and unchanged copies of the packages' licence files."""
    folder.mkdir()
    (folder / "NOTICE.md").write_bytes(Path(__file__).with_name("NOTICE.md").read_bytes())
    for part, package in PACKAGES.items():
        for content in read_package(packages, part, LICENCES).values():
            (folder / f"LICENSE-{Path(package.file_name).stem}.txt").write_bytes(content)


def build(packages: Path, output: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write the data set, completely or not at all.

    Args:
        packages: folder of the fetched tarballs.
        output: folder to create.
        counts: concepts of each split other than train.
        seed: another seed holds out other families.

    Raises:
        InputError: ``output`` exists, or a count does not fit.
        BundleError: a package is missing or is not the pinned one.
    """
    if output.exists() and not is_empty(output):
        raise InputError(f"{output} exists: name a new folder, or remove it first")
    drawn = {style: read_pictures(packages, style) for style in progress(STYLES, "reading pictures")}
    concepts = [c for c in read_concepts(packages) if all(c.code in drawn[style] for style in STYLES)]
    splits = split_concepts(with_own_captions(with_families(concepts)), counts, seed)
    with write_aside(output) as aside:
        aside.mkdir()
        write_notices(aside / "notices", packages)
        for split, pictures in arrange(splits).items():
            write_split(aside / split, pictures, drawn)


def main(
    packages: Annotated[Path, typer.Option(help="Folder of the fetched tarballs.")] = Path("build/emoji/packages"),
    output: Annotated[Path, typer.Option(help="Folder to create.")] = Path("build/emoji/data"),
    dev: Annotated[int, typer.Option(help="Concepts of dev, for choosing a recipe.", min=1)] = 100,
    test: Annotated[int, typer.Option(help="Held-out concepts.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="Another seed holds out other families.")] = 0,
) -> None:
    """Build a picture data set of emoji."""
    build(packages, output, {"test": test, "dev": dev}, seed)


if __name__ == "__main__":
    run_command(main)
