"""Draw a picture data set in which the binding of words matters.

    camp scenes --output data/scenes --train 5000 --dev 100 --test 300 --seed 0

A scene holds 3 to 5 objects (8 colours x 6 shapes x 2 sizes) in different cells of a jittered 3 x 3 grid. Scenes come
in pairs of twins, one after the other. In the second twin, the objects have exchanged their sizes, colours or shapes
or, in every other pair, their places. Twins have the same words in a different binding, so a model that only detects
which words occur cannot distinguish them. Each scene has five captions. A caption names two objects, joined by "and" or
by their relative position, and is never true of the twin. Two pictures of a split share a sentence only if a scene has
too few unused ones.

The folder follows the ImageFolder convention: ``{split}/metadata.jsonl`` with ``file_name`` and ``captions``, and the
drawn ``objects`` as ground truth. The same arguments give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw

from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import followed, is_empty, write_aside
from camp_sdk.terminal import progress, run_command

COLOURS = {
    "red": (220, 30, 30),
    "orange": (255, 145, 0),
    "yellow": (245, 220, 20),
    "green": (30, 160, 60),
    "blue": (35, 85, 225),
    "purple": (140, 50, 175),
    "pink": (255, 130, 190),
    "black": (25, 25, 25),
}
SIZES = {"small": 7.0, "large": 12.5}  # radius in pixels of a 96-pixel picture
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
CAPTIONS = 5
GRID = 3
CANVAS = 96
SUPERSAMPLING = 4
BACKGROUND = (246, 244, 238)
SIZE, COLOUR, SHAPE, SPOT = range(4)
TURNS = (SIZE, SPOT, COLOUR, SPOT, SHAPE, SPOT)  # what twins exchange; relations are the hardest to learn

Spot = tuple[int, float, float]  # grid cell; offset right and down from its centre, -1 to 1


@dataclass(frozen=True)
class SceneObject:
    """One drawn object.

    Args:
        size: a key of `SIZES`.
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
        x: the centre in pixels from the left of a 96 x 96 canvas.
        y: the centre in pixels from the top.
    """

    size: str
    colour: str
    shape: str
    x: float
    y: float

    @property
    def phrase(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"

    @property
    def look(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape


Scene = tuple[list[SceneObject], list[str]]  # the objects, and the captions to choose from


def _polygon(angles_degrees: list[float], radii: list[float]) -> list[tuple[float, float]]:
    return [
        (r * math.cos(math.radians(a)), -r * math.sin(math.radians(a)))
        for a, r in zip(angles_degrees, radii, strict=True)
    ]


OUTLINES = {
    "square": _polygon([45, 135, 225, 315], [1.15] * 4),
    "diamond": _polygon([0, 90, 180, 270], [0.8, 1.2, 0.8, 1.2]),
    "triangle": _polygon([90, 210, 330], [1.15] * 3),
    "star": _polygon([90 + 36 * k for k in range(10)], [1.2, 0.48] * 5),
}


def _draw(canvas: ImageDraw.ImageDraw, item: SceneObject, scale: float) -> None:
    x, y, radius = item.x * scale, item.y * scale, SIZES[item.size] * scale
    fill = COLOURS[item.colour]
    if item.shape == "circle":
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    elif item.shape == "cross":
        arm = 0.36 * radius
        canvas.rectangle([x - radius, y - arm, x + radius, y + arm], fill=fill)
        canvas.rectangle([x - arm, y - radius, x + arm, y + radius], fill=fill)
    else:
        canvas.polygon([(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[item.shape]], fill=fill)


def draw_scene(objects: list[SceneObject], size: int = CANVAS) -> Image.Image:
    """Draw a scene as an RGB picture, anti-aliased by drawing it four times as large.

    Args:
        objects: the objects of the scene.
        size: the width and height of the picture in pixels.
    """
    large = size * SUPERSAMPLING
    picture = Image.new("RGB", (large, large), BACKGROUND)
    canvas = ImageDraw.Draw(picture)
    for item in objects:
        _draw(canvas, item, large / CANVAS)
    return picture.resize((size, size), Image.Resampling.BOX)


def _placed(size: str, colour: str, shape: str, spot: Spot) -> SceneObject:
    cell, room = CANVAS / GRID, max(CANVAS / GRID / 2 - 1.2 * SIZES[size], 1.0)
    x = (spot[0] % GRID + 0.5) * cell + spot[1] * room
    y = (spot[0] // GRID + 0.5) * cell + spot[2] * room
    return SceneObject(size, colour, shape, round(x, 2), round(y, 2))


def _columns(rng: random.Random) -> list[list[Any]]:
    """The sizes, colours, shapes and spots of 3 to 5 objects that all look different."""
    looks = rng.sample(list(itertools.product(SIZES, COLOURS, SHAPES)), rng.randint(3, 5))
    cells = rng.sample(range(GRID * GRID), len(looks))
    spots = [(cell, rng.uniform(-1, 1), rng.uniform(-1, 1)) for cell in cells]
    return [*map(list, zip(*looks, strict=True)), spots]


def relation(first: SceneObject, second: SceneObject) -> str:
    """The position of the first object relative to the second, along the axis on which they are further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def true_captions(objects: list[SceneObject]) -> list[str]:
    """Every caption of the grammar that is true of a scene: each ordered pair, with "and" and with its relation."""
    return [
        f"{a.phrase} {word} {b.phrase}"
        for a, b in itertools.permutations(objects, 2)
        for word in ("and", relation(a, b))
    ]


def _twins(rng: random.Random, exchanged: int) -> tuple[Scene, Scene]:
    """A scene and its twin, in which the objects have exchanged one column: sizes, colours, shapes or spots.

    Large objects have less room in their cells, so an exchange of sizes moves them a little. Each scene comes with the
    captions that are true of it and not of its twin.
    """
    while True:  # an exchange changes some scenes too little, or not at all: draw again
        columns = _columns(rng)
        one = [_placed(*column) for column in zip(*columns, strict=True)]
        rng.shuffle(columns[exchanged])
        two = [_placed(*column) for column in zip(*columns, strict=True)]
        true, true_of_two = true_captions(one), true_captions(two)
        own = [caption for caption in true if caption not in true_of_two]
        own_of_two = [caption for caption in true_of_two if caption not in true]
        if min(len(own), len(own_of_two)) >= CAPTIONS and len({item.look for item in two}) == len(two):
            return (one, own), (two, own_of_two)


def scenes(count: int, rng: random.Random) -> Iterator[Scene]:
    """Draw ``count`` scenes; every second one is the twin of the one before it."""
    couples = (_twins(rng, exchanged) for exchanged in itertools.cycle(TURNS))
    return itertools.islice(itertools.chain.from_iterable(couples), count)


def _choose_captions(rng: random.Random, own: list[str], written: set[str]) -> list[str]:
    """Five captions that are new in this split, if the scene has enough of them.

    A sentence of two pictures has two right answers.
    """
    fresh = [caption for caption in own if caption not in written]
    return rng.sample(fresh if len(fresh) >= CAPTIONS else own, CAPTIONS)


def write_split(folder: Path, count: int, seed: str, size: int) -> None:
    """Write ``count`` pictures and their metadata.jsonl into a new folder."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    written: set[str] = set()
    lines = []
    for index, (objects, own) in enumerate(progress(scenes(count, rng), f"drawing {folder.name}", count)):
        name = f"{index:06d}.png"
        draw_scene(objects, size).save(folder / name)
        captions = _choose_captions(rng, own, written)
        written.update(captions)
        lines.append(json.dumps({"file_name": name, "captions": captions, "objects": [asdict(o) for o in objects]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_scenes(output: Path, counts: dict[str, int], seed: int = 0, size: int = CANVAS) -> None:
    """Write a data set of drawn scenes, with one folder per split. If it fails, nothing is written.

    Args:
        output: the folder to create.
        counts: the number of pictures of each split.
        seed: another seed gives another data set.
        size: the width and height of the pictures in pixels.

    Raises:
        InputError: ``output`` exists and is not empty, or a split has no pictures.
    """
    if output.exists() and not is_empty(output):
        raise InputError(f"{output} exists: name a new folder, or remove it first")
    for split, count in counts.items():
        if count < 1:
            raise InputError(f"`{split}` {count}: a split needs at least one picture")
    with write_aside(followed(output)) as aside:
        for split, count in counts.items():
            write_split(aside / split, count, f"{seed}/{split}", size)


def oracle_recalls(folder: Path) -> tuple[float, float]:
    """The expected R@1 of a perfect model on a split, in percent: text to image, and image to text.

    A caption may be true of several pictures. A perfect model knows the drawn objects and guesses among the pictures,
    or captions, that fit equally well.

    Args:
        folder: the folder of the split.
    """
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    true = [set(true_captions([SceneObject(**item) for item in row["objects"]])) for row in rows]
    to_image = [1 / sum(caption in scene for scene in true) for row in rows for caption in row["captions"]]
    fitting = [sum(caption in scene for row in rows for caption in row["captions"]) for scene in true]
    to_text = [len(row["captions"]) / count for row, count in zip(rows, fitting, strict=True)]
    return 100 * sum(to_image) / len(to_image), 100 * sum(to_text) / len(to_text)


def command(
    output: Annotated[Path, typer.Option(help="Folder to create.")],
    train: Annotated[int, typer.Option(help="Pictures to train on.")] = 5000,
    dev: Annotated[int, typer.Option(help="Pictures that select the best epoch.")] = 100,
    test: Annotated[int, typer.Option(help="Held-out pictures.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed gives another data set.")] = 0,
    size: Annotated[int, typer.Option(help="Width and height in pixels.", min=48, max=1024)] = CANVAS,
) -> None:
    """Draw a picture data set in which the binding of words matters."""
    write_scenes(output, {"train": train, "dev": dev, "test": test}, seed, size)


if __name__ == "__main__":
    run_command(command)
