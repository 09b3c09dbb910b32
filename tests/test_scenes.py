"""The drawn data set: the same bytes for the same seed, captions that are true, twins that differ in binding alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk.export import scenes as scenes_module
from camp_sdk.export.scenes import (
    BACKGROUND,
    CANVAS,
    COLOURS,
    OUTLINES,
    SHAPES,
    SIZES,
    TURNS,
    SceneObject,
    draw_scene,
    oracle_recalls,
    relation,
    scenes,
    true_captions,
    write_scenes,
)
from camp_sdk.runtime.errors import InputError

COUNTS = {"train": 4, "dev": 2, "test": 2}
DRAWN = list(scenes(400, random.Random(0)))
MANY = [objects for objects, _ in DRAWN]
CAPTION = re.compile(r"a (\w+) (\w+) (\w+) (and|above|below|left of|right of) a (\w+) (\w+) (\w+)")


def tree_hash(folder: Path) -> str:
    """One hash of every path and every byte below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def metadata(split: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def reach(item: SceneObject) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a drawn object, in pixels of the canvas."""
    dx, dy = zip(*OUTLINES.get(item.shape, [(-1, -1), (1, 1)]), strict=True)
    radius = SIZES[item.size]
    return (
        item.x + radius * min(dx),
        item.y + radius * min(dy),
        item.x + radius * max(dx),
        item.y + radius * max(dy),
    )


def is_true(word: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    right, down = first["x"] - second["x"], first["y"] - second["y"]
    return {
        "and": True,
        "above": down < 0 and abs(down) > abs(right),
        "below": down > 0 and abs(down) > abs(right),
        "left of": right < 0 and abs(right) >= abs(down),
        "right of": right > 0 and abs(right) >= abs(down),
    }[word]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_scenes(tmp_path / name, COUNTS, seed=5)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    for seed in (5, 6):
        write_scenes(tmp_path / str(seed), COUNTS, seed=seed)
    assert tree_hash(tmp_path / "5") != tree_hash(tmp_path / "6")


def test_splits_of_one_seed_are_different_scenes(scenes: Path) -> None:
    assert metadata(scenes / "dev")[0]["objects"] != metadata(scenes / "test")[0]["objects"]


def test_the_folder_is_an_image_folder(scenes: Path) -> None:
    rows = metadata(scenes / "train")
    assert len(rows) == 24
    assert {path.name for path in (scenes / "train").iterdir()} == {"metadata.jsonl"} | {r["file_name"] for r in rows}


def test_a_picture_is_the_drawing_of_its_objects(scenes: Path) -> None:
    row = metadata(scenes / "test")[0]
    drawn = draw_scene([SceneObject(**item) for item in row["objects"]])
    with Image.open(scenes / "test" / row["file_name"]) as picture:
        assert picture.size == (CANVAS, CANVAS)
        assert np.array_equal(np.asarray(picture), np.asarray(drawn))


def test_there_are_8_colours_6_shapes_and_2_sizes() -> None:
    assert (len(COLOURS), len(SHAPES), len(SIZES)) == (8, 6, 2)


def test_every_colour_shape_and_size_is_drawn() -> None:
    looks = zip(*(item.look for scene in MANY for item in scene), strict=True)
    assert [set(column) for column in looks] == [set(SIZES), set(COLOURS), set(SHAPES)]


def test_a_scene_has_three_to_five_distinct_objects() -> None:
    assert {len(scene) for scene in MANY} == {3, 4, 5}
    assert all(len({item.look for item in scene}) == len(scene) for scene in MANY)


def test_objects_stay_inside_the_canvas() -> None:
    edges = np.array([reach(item) for scene in MANY for item in scene])
    # Centres are rounded to hundredths of a pixel.
    assert edges.min() >= -0.01
    assert edges.max() <= CANVAS + 0.01


def test_objects_do_not_overlap() -> None:
    for scene in MANY:
        for a, b in itertools.combinations(map(reach, scene), 2):
            # Centres are rounded to hundredths of a pixel.
            assert max(a[0], b[0]) > min(a[2], b[2]) - 0.02 or max(a[1], b[1]) > min(a[3], b[3]) - 0.02


def test_an_object_is_drawn_where_and_how_it_says() -> None:
    item = SceneObject("large", "blue", "square", 60.0, 30.0)
    pixels = np.asarray(draw_scene([item]))
    coloured = np.argwhere((pixels != BACKGROUND).any(-1))
    left, top, right, bottom = reach(item)
    assert tuple(pixels[30, 60]) == COLOURS["blue"]
    # A pixel at an edge may hold a sliver of colour, or lose it in the average.
    np.testing.assert_allclose(coloured.min(0), [top, left], atol=1)
    np.testing.assert_allclose(coloured.max(0) + 1, [bottom, right], atol=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_looks_different(shape: str) -> None:
    pictures = {s: draw_scene([SceneObject("large", "red", s, 48, 48)]).tobytes() for s in SHAPES}
    assert list(pictures.values()).count(pictures[shape]) == 1


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (50, 10, "above"),
        (50, 90, "below"),
        (10, 50, "left of"),
        (90, 50, "right of"),
        (40, 10, "above"),
        (10, 40, "left of"),
    ],
)
def test_relation_agrees_with_coordinates(x: float, y: float, word: str) -> None:
    first, centre = SceneObject("small", "red", "star", x, y), SceneObject("small", "blue", "star", 50, 50)
    assert relation(first, centre) == word


def test_relation_seen_from_the_other_object_is_the_opposite() -> None:
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    for a, b in (pair for scene in MANY for pair in itertools.combinations(scene, 2)):
        assert relation(a, b) == opposite[relation(b, a)]


def test_captions_are_true_of_their_scene(scenes: Path) -> None:
    for row in metadata(scenes / "train"):
        objects = {(item["size"], item["colour"], item["shape"]): item for item in row["objects"]}
        for caption in row["captions"]:
            parsed = CAPTION.fullmatch(caption)
            assert parsed is not None, caption
            size, colour, shape, word, *second = parsed.groups()
            assert (size, colour, shape) != tuple(second)
            assert is_true(word, objects[size, colour, shape], objects[tuple(second)])  # type: ignore[index]  # three keys


def test_each_picture_has_five_different_captions(scenes: Path) -> None:
    assert all(len(set(row["captions"])) == len(row["captions"]) == 5 for row in metadata(scenes / "train"))


def test_true_captions_name_every_ordered_pair_twice() -> None:
    captions = true_captions(MANY[0])
    assert len(set(captions)) == len(captions) == 2 * len(MANY[0]) * (len(MANY[0]) - 1)


def test_twins_share_their_words() -> None:
    for scene, twin in zip(MANY[::2], MANY[1::2], strict=True):
        columns = [[sorted(column) for column in zip(*(item.look for item in s), strict=True)] for s in (scene, twin)]
        assert columns[0] == columns[1]


def test_twins_differ_in_one_exchange() -> None:
    for one, two, exchanged in zip(MANY[::2], MANY[1::2], itertools.cycle(TURNS), strict=False):
        looks = [list(zip(*(item.look for item in scene), strict=True)) for scene in (one, two)]
        assert [before == after for before, after in zip(*looks, strict=True)] == [k != exchanged for k in range(3)]
        assert one != two


def test_an_exchange_of_looks_leaves_objects_in_their_cells() -> None:
    def cells(scene: list[SceneObject]) -> list[tuple[int, int]]:
        return [(int(item.x / 32), int(item.y / 32)) for item in scene]

    kept = [cells(a) == cells(b) for a, b in zip(MANY[::2], MANY[1::2], strict=True)]
    assert kept == [True, False] * 100


def test_no_caption_is_true_of_the_twin() -> None:
    for one, two in itertools.chain.from_iterable(
        ((a, b), (b, a)) for a, b in zip(DRAWN[::2], DRAWN[1::2], strict=True)
    ):
        assert set(one[1]) == set(true_captions(one[0])) - set(true_captions(two[0]))
        assert len(one[1]) >= 5


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists: name a new folder"):
        write_scenes(tmp_path, COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("count", [0, -1])
def test_a_split_without_pictures_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"`dev` {count}: a split needs at least one picture"):
        write_scenes(tmp_path / "data", COUNTS | {"dev": count})
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_a_failure_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_in_dev(folder: Path, count: int, seed: str, size: int, write: Any = scenes_module.write_split) -> None:
        write(folder, count, seed, size)
        if folder.name == "dev":
            raise OSError("disk full")

    monkeypatch.setattr(scenes_module, "write_split", fail_in_dev)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(tmp_path / "data", COUNTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [48, 192])
def test_pictures_come_in_the_size_asked_for(tmp_path: Path, size: int) -> None:
    write_scenes(tmp_path / "data", {"test": 1}, size=size)
    with Image.open(tmp_path / "data/test/000000.png") as picture:
        assert picture.size == (size, size)


def test_the_oracle_guesses_among_pictures_of_which_a_caption_is_true(tmp_path: Path) -> None:
    left, right = SceneObject("small", "red", "star", 20, 50), SceneObject("small", "blue", "star", 80, 50)
    row = {"captions": ["a small red star and a small blue star"], "objects": [vars(left), vars(right)]}
    swapped = {
        "captions": ["a small red star right of a small blue star"],
        "objects": [vars(left) | {"x": 80}, vars(right) | {"x": 20}],
    }
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(swapped))
    # "and" is true of both pictures, "right of" of the second alone; so the first picture fits one caption, its own.
    assert oracle_recalls(tmp_path) == (75.0, 75.0)
