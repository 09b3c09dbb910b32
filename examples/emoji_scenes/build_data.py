"""Compose scenes of emoji artwork in which the binding of words matters: "a strawberry left of an owl".

    python -m examples.emoji_scenes.build_data --pictures build/emoji/data --output build/emoji_scenes/data

This command uses the pictures of examples/emoji_search. A scene shows 2 to 4 animals, plants, foods, vehicles or
objects on a plain light background, each in the artwork of any of the makers. Consecutive scenes are twins: they show
the same pictures on the same background, but one pair of pictures, or each of two pairs, has exchanged places. The
captions describe the relative position of such a pair from the view of either picture, along the axis on which the two
are further apart. No caption is therefore true of the twin, although the twin's captions have the same words: a model
that only knows what is in a scene cannot distinguish the two.

Any two things appear together in only one scene of a split and its twin, so no caption is true of another picture.
Train, dev and test show the things of those splits, which share no family. ``seen`` shows the things of train in pairs
that train does not have: it measures binding alone, without the recognition of new things.

``{split}/metadata.jsonl`` has, besides ``file_name`` and ``captions``, the ``objects``: concept, style, centre and
width. The same arguments give the same bytes with the same version of Pillow.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import is_empty, write_aside
from camp_sdk.terminal import progress, run_command
from examples.emoji_scenes.phrases import phrase

CANVAS = 384  # width and height of a scene in pixels
SMALLEST, LARGEST = 128, {2: 180, 3: 156, 4: 144}  # width of an object in pixels; LARGEST by the number of objects
CLEAR = 32  # pixels by which the two distances of a described pair differ at least, so that the axis is clear
LIGHT = (228, 250)  # range of red, green and blue of the background
TRIES = 20_000
SOURCES = {"train": "train", "dev": "dev", "test": "test", "seen": "train"}  # where the things of each split come from

NAME = re.compile(r"[a-z]+( [a-z]+){0,2}")
GROUPS = (
    "animals-nature",
    "food-drink",
    "activities",
    "objects",
    "transport-ground",
    "transport-water",
    "transport-air",
)
NO_THINGS = {
    "cooking",
    "construction",
    "locked",
    "unlocked",
    "locked with key",
    "locked with pen",
    "moon viewing ceremony",
}

Things = dict[str, dict[str, Path]]  # the pictures of each concept, by style
Spot = tuple[int, int]  # a centre in pixels, y growing downwards


@dataclass(frozen=True)
class SceneObject:
    """One picture in a scene.

    Args:
        concept: the emoji's name.
        style: the maker of the artwork.
        x: the centre's distance from the left edge in pixels.
        y: the centre's distance from the top edge in pixels.
        size: width and height in pixels.
    """

    concept: str
    style: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """The objects of a scene, its captions, and the red, green and blue of its background."""

    objects: list[SceneObject]
    captions: list[str]
    ground: tuple[int, ...]


def read_things(pictures: Path, split: str) -> Things:
    """Read the concepts of a split that scenes may show.

    Args:
        pictures: the data set of examples/emoji_search.
        split: the split's name.

    Raises:
        BundleError: this is not a split of examples/emoji_search.
    """
    metadata = pictures / split / "metadata.jsonl"
    if not metadata.is_file():
        raise BundleError(f"{metadata} is missing: make it with: python -m examples.emoji_search.build_data")
    things: Things = {}
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            if _is_thing(row):
                things.setdefault(row["concept"], {})[row["style"]] = metadata.with_name(row["file_name"])
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{metadata}:{number} was not written by examples/emoji_search ({error!r})") from None
    return things


def _is_thing(row: dict[str, Any]) -> bool:
    name: str = row["concept"]
    return (
        bool(NAME.fullmatch(name)) and name not in NO_THINGS and not {row["group"], row["subgroup"]}.isdisjoint(GROUPS)
    )


def relation(first: Spot, second: Spot) -> str:
    """The position of the first spot relative to the second, along the axis on which they are further apart."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def is_clear(first: Spot, second: Spot) -> bool:
    """Whether it is clear on which axis two spots are further apart: by at least `CLEAR` pixels."""
    return abs(abs(first[0] - second[0]) - abs(first[1] - second[1])) >= CLEAR


def draw_spots(rng: random.Random, count: int, width: int) -> list[Spot]:
    """Draw random centres for pictures that do not overlap. The first two are a clear pair, and so are the next two.

    Args:
        rng: the source of randomness.
        count: number of centres.
        width: width of the pictures in pixels.
    """
    low, high = (width + 1) // 2, CANVAS - (width + 1) // 2
    while True:
        spots: list[Spot] = []
        for index in range(count):
            spot = rng.randint(low, high), rng.randint(low, high)
            free = all(max(abs(spot[0] - x), abs(spot[1] - y)) >= width for x, y in spots)
            if not free or (index % 2 and not is_clear(spot, spots[-1])):
                break
            spots.append(spot)
        else:
            return spots


def place(rng: random.Random, looks: list[tuple[str, str]]) -> tuple[Scene, Scene]:
    """Compose a scene and its twin, in which each complete pair has exchanged places.

    Args:
        rng: the source of randomness.
        looks: (concept, style) of each object.
    """
    width = rng.randint(SMALLEST, LARGEST[len(looks)])
    spots = draw_spots(rng, len(looks), width)
    sizes = [rng.randint(SMALLEST, width) for _ in looks]
    ground = tuple(rng.randint(*LIGHT) for _ in range(3))
    pairs = [(k, k + 1) for k in range(0, len(looks) - 1, 2)]
    exchanged = list(spots)
    for k, j in pairs:
        exchanged[k], exchanged[j] = spots[j], spots[k]

    def scene(spots: list[Spot]) -> Scene:
        objects = [SceneObject(*look, *spot, size) for look, spot, size in zip(looks, spots, sizes, strict=True)]
        return Scene(objects, [caption for k, j in pairs for caption in describe(objects[k], objects[j])], ground)

    return scene(spots), scene(exchanged)


def describe(one: SceneObject, other: SceneObject) -> tuple[str, str]:
    """Two captions of the relative position of two objects, one from the view of each."""
    spots, names = [(o.x, o.y) for o in (one, other)], [phrase(o.concept) for o in (one, other)]
    return f"{names[0]} {relation(*spots)} {names[1]}", f"{names[1]} {relation(*reversed(spots))} {names[0]}"


def choose_concepts(rng: random.Random, things: Things, met: set[frozenset[str]]) -> list[str]:
    """Choose 2 to 4 concepts of which no two have shared a scene yet.

    Args:
        rng: the source of randomness.
        things: the concepts to choose from.
        met: the pairs that have shared a scene; the new pairs are added to it.

    Raises:
        InputError: no such concepts were found.
    """
    for _ in range(TRIES if len(things) >= max(LARGEST) else 0):
        chosen = rng.sample(list(things), rng.choice(list(LARGEST)))
        pairs = {frozenset(pair) for pair in itertools.combinations(chosen, 2)}
        if met.isdisjoint(pairs):
            met |= pairs
            return chosen
    raise InputError(f"{len(things)} things are too few for this many scenes without a repeated pair: ask for fewer")


def scenes(count: int, rng: random.Random, things: Things, met: set[frozenset[str]]) -> Iterator[Scene]:
    """Compose scenes, of which every second one is the twin of the one before it.

    Args:
        count: number of scenes.
        rng: the source of randomness.
        things: the concepts to show.
        met: the pairs that have shared a scene; the new pairs are added to it.
    """
    for index in range(0, count, 2):
        looks = [(concept, rng.choice(list(things[concept]))) for concept in choose_concepts(rng, things, met)]
        yield from place(rng, looks)[: count - index]


@lru_cache(maxsize=8)  # twins show the same pictures
def _artwork(path: Path, size: int) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def draw_scene(scene: Scene, things: Things) -> Image.Image:
    """Draw a scene: RGB, 384 x 384 pixels."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), scene.ground)
    for item in scene.objects:
        art = _artwork(things[item.concept][item.style], item.size)
        canvas.paste(art, (item.x - item.size // 2, item.y - item.size // 2), art)
    return canvas


def write_split(folder: Path, drawn: Iterator[Scene], things: Things, count: int) -> None:
    """Draw the scenes of a split and write its metadata.

    Args:
        folder: folder to create.
        drawn: the scenes.
        things: the pictures of the scenes' concepts.
        count: number of scenes, for the progress bar.
    """
    folder.mkdir()
    lines = []
    for index, scene in enumerate(progress(drawn, f"composing {folder.name}", count)):
        name = f"{index:06d}.jpg"
        draw_scene(scene, things).save(folder / name, quality=90)
        objects = [asdict(item) for item in scene.objects]
        lines.append(json.dumps({"file_name": name, "captions": scene.captions, "objects": objects}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build(pictures: Path, output: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write the data set and the notices of its pictures, completely or not at all.

    Args:
        pictures: the data set of examples/emoji_search.
        output: folder to create.
        counts: scenes of each split.
        seed: another seed gives another data set.

    Raises:
        InputError: ``output`` exists, or there are too few things for a count.
        BundleError: ``pictures`` is not the data set of examples/emoji_search.
    """
    if output.exists() and not is_empty(output):
        raise InputError(f"{output} exists: name a new folder, or remove it first")
    things = {source: read_things(pictures, source) for source in SOURCES.values()}
    met: dict[str, set[frozenset[str]]] = {source: set() for source in things}
    with write_aside(output) as aside:
        aside.mkdir()
        shutil.copytree(pictures / "notices", aside / "notices")
        for split, count in counts.items():
            source = SOURCES[split]
            drawn = scenes(count, random.Random(f"{seed}/{split}"), things[source], met[source])
            write_split(aside / split, drawn, things[source], count)


def main(
    pictures: Annotated[Path, typer.Option(help="Data set of examples/emoji_search.")] = Path("build/emoji/data"),
    output: Annotated[Path, typer.Option(help="Folder to create.")] = Path("build/emoji_scenes/data"),
    train: Annotated[int, typer.Option(help="Scenes to train on.", min=1)] = 6000,
    dev: Annotated[int, typer.Option(help="Scenes of dev, for choosing a recipe.", min=1)] = 200,
    test: Annotated[int, typer.Option(help="Scenes of held-out things.", min=1)] = 300,
    seen: Annotated[int, typer.Option(help="Held-out scenes of the things of train.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="Another seed gives another data set.")] = 0,
) -> None:
    """Compose scenes of emoji artwork in which the binding of words matters."""
    build(pictures, output, {"train": train, "dev": dev, "test": test, "seen": seen}, seed)


if __name__ == "__main__":
    run_command(main)
