"""The data sets of emoji, built from tiny packages made here: held-out families, true captions, the same bytes."""

# ruff: noqa: SIM905  # names as one reads them

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import load_split
from camp_sdk.runtime.errors import BackendError, BundleError, InputError
from examples.emoji_scenes import build_data as emoji_scenes
from examples.emoji_scenes.phrases import phrase
from examples.emoji_search import build_data, fetch
from examples.emoji_search.families import code_key, group_families, word_key
from examples.emoji_search.packages import FLUENT, KEYWORDS, LABELS, NOTO, PACKAGES, STYLES, TWEMOJI, read_package

ROOT = Path(__file__).parents[1]
GROUPS = ["smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "flags"]
ANIMALS = (
    "ant bat bear bee boar camel cat cow crab deer dodo dog duck eagle elk ewe fish fly fox frog goat hen horse "
    "ibis koala lion llama mole moose mouse otter owl ox panda pig rat seal shark sheep skunk snail snake swan "
    "tiger toad wolf worm yak"
).split()
OTHERS = [  # label, hexcode as emojibase spells it, group
    ("red heart", "2764-FE0F", 0),
    ("student", "1F9D1-200D-1F393", 1),
    ("man student", "1F468-200D-1F393", 1),
    ("woman student", "1F469-200D-1F393", 1),
    ("twelve o\u2019clock", "1F55B", 0),
    ("one-thirty", "1F55C", 0),
    ("keycap: 1", "0031-FE0F-20E3", 0),
    ("light skin tone", "1F3FB", 2),
    ("flag: Chad", "1F1F9-1F1E9", 5),
    ("orca", "1FACD", 3),  # nobody of the fake artists but one has drawn it
]
EMOJI = OTHERS + [(name, f"{0x1F400 + number:X}", 3) for number, name in enumerate(ANIMALS)]
HELD_OUT = {"test": 12, "dev": 9}
SCENES = {"train": 24, "dev": 6, "test": 6, "seen": 6}


def picture(colour: tuple[int, int, int], kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (*colour, 255)).save(file, kind, lossless=True)
    return file.getvalue()


def write_tarball(path: Path, members: dict[str, Any]) -> None:
    """A package of these files, and of links and names that should never be followed."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name if name.startswith(("/", "..")) else f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/img/google/64/1facd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def text_of(hexcode: str) -> str:
    return "".join(chr(int(code, 16)) for code in hexcode.split("-"))


def package_members() -> dict[str, dict[str, Any]]:
    labels = [
        {"label": label, "hexcode": code, "emoji": text_of(code), "group": group, "subgroup": 0, "order": order}
        | {"tags": ["thing", label.lower(), ":D"]}
        for order, (label, code, group) in enumerate(EMOJI)
    ]
    hostile = {"../../evil.png": b"evil", "/evil.png": b"evil", "img/google/64/../../evil.png": b"evil"}
    drawn = {code.lower(): (7 * number % 256, 40, 90) for number, (_, code, _) in enumerate(EMOJI)}
    bare = {code.replace("-fe0f", "") if code.count("-") == 1 else code: colour for code, colour in drawn.items()}
    return {
        FLUENT: {f"assets/{code}.webp": picture(c, "webp") for code, c in drawn.items() if code != "1facd"},
        NOTO: {f"img/google/64/{code}.png": picture(c, "png") for code, c in bare.items() if code != "1facd"}
        | {"emoji.json": [{"unified": c, "name": n.upper() if n != "dog" else "HOUND"} for n, c, _ in EMOJI]}
        | {"LICENSE": b"MIT"}
        | hostile,
        TWEMOJI: {f"img/twitter/64/{code}.png": picture(c, "png") for code, c in bare.items()},
        LABELS: {
            "en/data.json": [{"label": "regional indicator", "hexcode": "1F1E6", "emoji": "A"}, *reversed(labels)],
            "meta/groups.json": {"groups": {str(k): name for k, name in enumerate(GROUPS)}, "subgroups": {"0": "some"}},
        },
        KEYWORDS: {
            "dist/emoji-en-US.json": {
                text_of(code).replace("\ufe0f", ""): [f"{label}_{code}", "shared", ":)", "it\u2019s", "mr."]
                for label, code, _ in EMOJI
            }
        },
    }


def make_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny tarballs, which are the pinned ones from now on."""
    folder.mkdir()
    for part, members in package_members().items():
        tarball = folder / PACKAGES[part].file_name
        write_tarball(tarball, members)
        digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
        monkeypatch.setitem(PACKAGES, part, replace(PACKAGES[part], sha256=digest))
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_packages(tmp_path / "packages", monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built data set. Read only."""
    folder = tmp_path_factory.mktemp("emoji")
    with pytest.MonkeyPatch.context() as monkeypatch:
        build_data.build(make_packages(folder / "packages", monkeypatch), folder / "data", HELD_OUT)
    return folder / "data"


@pytest.fixture(scope="module")
def composed(data: Path) -> Path:
    """The composed scenes. Read only."""
    emoji_scenes.build(data, data.with_name("scenes"), SCENES)
    return data.with_name("scenes")


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def concepts(folder: Path, split: str) -> list[str]:
    return [row["concept"] for row in rows(folder, split)]


@pytest.mark.parametrize(
    "family",
    [
        {"1F9D1-200D-1F393": "student", "1F468-200D-1F393": "man student", "1F469-1F3FB-200D-1F393": "woman student"},
        {"1F471": "person: blond hair", "1F471-200D-2642-FE0F": "man: blond hair"},
        {"1F9D1": "person", "1F468-200D-1F9B0": "man: red hair", "1F467": "girl", "1F9D2": "child"},
        {"1F6B6": "person walking", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F": "woman walking: facing right"},
        {"1F483": "woman dancing", "1F57A": "man dancing"},
        {"1F46B": "woman and man holding hands", "1F46D": "women holding hands", "1F46C": "men holding hands"},
        {
            "1F46A": "family",
            "1F469-200D-1F466": "family: woman, boy",
            "1F468-200D-1F467-200D-1F467": "family: man, girl",
        },
        {"1F934": "prince", "1F478": "princess"},
        {"1F385": "santa claus", "1F936": "mrs. claus", "1F9D1-200D-1F384": "mx claus"},
        {"1F9D3": "older person", "1F474": "old man", "1F475": "old woman"},
        {"1F550": "one o'clock", "1F567": "twelve-thirty"},
        {"0031-FE0F-20E3": "keycap: 1", "0023-FE0F-20E3": "keycap: #", "1F51F": "keycap: 10"},
        {"2B06": "up arrow", "27A1": "right arrow", "2197": "up-right arrow"},
        {"2640": "female sign", "2642": "male sign"},
        {"1F6B9": "men\u2019s room", "1F6BA": "women's room"},
    ],
)
def test_variants_are_one_family(family: dict[str, str]) -> None:
    assert set(group_families(family.items())) == {0}


def test_what_only_looks_like_a_variant_is_not() -> None:
    emoji = {"1F393": "graduation cap", "1F9D1-200D-1F393": "student", "1F384": "christmas tree", "2640": "female sign"}
    assert group_families({**emoji, "27A1": "right arrow", "1F511": "key", "1F5DD": "old key"}.items()) == list(
        range(7)
    )


def test_families_join_whatever_the_order() -> None:
    """A third may share its code points with one and its words with another."""
    emoji = [("1F477", "builder"), ("1F6A7", "woman with helmet"), ("1F477-200D-2642", "man with helmet")]
    assert all(set(group_families(order)) == {0} for order in itertools.permutations(emoji))


def test_keys_of_which_nothing_remains() -> None:
    assert code_key("2640") == "2640"
    assert word_key("woman") == ""


def test_splits_share_no_family(data: Path) -> None:
    families = [{row["family"] for row in rows(data, split)} for split in ("train", "dev", "test")]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(families, 2))
    assert sum(map(len, families)) == len(ANIMALS) + 4  # hearts, students, clocks, keycaps


def test_every_emoji_all_have_drawn_is_in_one_split(data: Path) -> None:
    found = [set(concepts(data, split)) for split in ("train", "dev", "test")]
    expected = {
        *ANIMALS,
        "red heart",
        "student",
        "man student",
        "woman student",
        "twelve o'clock",
        "one-thirty",
        "keycap: 1",
    }
    assert set.union(*found) == expected
    assert [len(names) for names in found[1:]] == [9, 12]
    assert sum(map(len, found)) == len(expected)


def test_the_test_split_is_one_style_after_the_other(data: Path) -> None:
    test = rows(data, "test")
    names = [row["concept"] for row in test[:12]]
    assert [(row["style"], row["concept"]) for row in test] == [(style, name) for style in STYLES for name in names]


def test_folds_of_the_test_split_hold_every_concept_once(data: Path) -> None:
    """What ``camp eval --folds 3`` cuts out is a style."""
    split = load_split(data, "test")
    for fold, style in zip(np.split(np.arange(len(split.images)), 3), STYLES, strict=True):
        assert {Path(split.images[k]).stem.rpartition("-")[2] for k in fold} == {style}


def test_training_pictures_of_a_concept_stand_side_by_side(data: Path) -> None:
    train = rows(data, "train")
    for start in range(0, len(train), 3):
        assert len({row["concept"] for row in train[start : start + 3]}) == 1
        assert [row["style"] for row in train[start : start + 3]] == list(STYLES)


def test_training_keeps_the_order_of_emoji(data: Path) -> None:
    order = [build_data.plain(label) for label, _, _ in EMOJI]
    found = [order.index(name) for name in concepts(data, "train")]
    assert found == sorted(found)


def test_dev_has_one_picture_a_concept_and_the_styles_in_turn(data: Path) -> None:
    dev = rows(data, "dev")
    assert len({row["concept"] for row in dev}) == 9
    assert [row["style"] for row in dev] == list(STYLES) * 3


def test_pictures_are_copied_as_they_are(data: Path, packages: Path) -> None:
    members = package_members()
    row = next(row for row in rows(data, "train") if row["style"] == NOTO and row["group"] == "animals-nature")
    original = members[NOTO][f"img/google/64/{row['hexcode'].lower()}.png"]
    assert (data / "train" / row["file_name"]).read_bytes() == original
    assert read_package(packages, NOTO, "img/.*")[f"img/google/64/{row['hexcode'].lower()}.png"] == original


def test_captions_and_what_they_are(data: Path) -> None:
    found = {row["concept"]: row for split in ("train", "dev", "test") for row in rows(data, split)}
    dog, clock = found["dog"], found["twelve o'clock"]
    code = dog["hexcode"].lower()
    assert dog["captions"] == ["dog", "hound", "thing dog", f"dog {code} shared it's mr"]
    assert dog["kinds"] == ["name", "unicode name", "tags", "keywords"]
    assert clock["captions"] == ["twelve o'clock", "thing twelve o'clock", "twelve o'clock 1f55b shared it's mr"]
    assert clock["kinds"] == ["name", "tags", "keywords"]


def test_no_caption_is_empty_or_anybody_elses(data: Path) -> None:
    own = {row["concept"]: row["captions"] for split in ("train", "dev", "test") for row in rows(data, split)}
    written = Counter(caption for captions in own.values() for caption in captions)
    assert set(written.values()) == {1}
    assert "" not in written
    assert all(len(row["captions"]) == len(row["kinds"]) for row in rows(data, "train"))


def test_captions_several_concepts_share_are_left_out() -> None:
    one, other = (
        build_data.Concept(
            name, code, "", "", {"name": name, "tags": "animal", "keywords": name + " pet", "unicode name": name}
        )
        for name, code in (("dog", "1F415"), ("cat", "1F408"))
    )
    assert [c.captions for c in build_data.with_own_captions([one, other])] == [
        {"name": "dog", "keywords": "dog pet"},
        {"name": "cat", "keywords": "cat pet"},
    ]


def test_a_name_stays_though_it_is_anothers_tag() -> None:
    one = build_data.Concept("paw", "1F43E", "", "", {"name": "paw", "tags": "foot"})
    other = build_data.Concept("foot", "1F9B6", "", "", {"name": "foot", "tags": "paw"})
    assert [c.captions for c in build_data.with_own_captions([one, other])] == [{"name": "paw"}, {"name": "foot"}]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["grinning_face", "face", ":D", "^^", "-_-", "+1"], "grinning face"),
        (["\u201cfree", "eleven\u00ae", "it\u2019s", "front\u00a0of"], "free eleven it's front of"),
        (["o", "3", "T-Rex", "10:00"], "o 3 t-rex 10:00"),
        ([":)"], ""),
    ],
)
def test_phrases_of_search_words(entries: list[str], expected: str) -> None:
    assert build_data.phrase(entries) == expected


def test_the_same_arguments_give_the_same_bytes(data: Path, packages: Path, tmp_path: Path) -> None:
    build_data.build(packages, tmp_path / "again", HELD_OUT)
    build_data.build(packages, tmp_path / "other", HELD_OUT, seed=1)
    assert contents(tmp_path / "again") == contents(data)
    assert concepts(tmp_path / "other", "test") != concepts(data, "test")


def test_notices_and_licences_go_along(data: Path, composed: Path) -> None:
    notices = contents(data / "notices")
    assert set(notices) == {"NOTICE.md", "LICENSE-emoji-datasource-google-16.0.0.txt"}
    assert all(f"`{package.name}` {package.version}" in notices["NOTICE.md"].decode() for package in PACKAGES.values())
    assert contents(composed / "notices") == notices


def test_nothing_but_what_was_asked_for_is_written(data: Path, packages: Path) -> None:
    for split in ("train", "dev", "test"):
        names = {path.name for path in (data / split).iterdir()}
        assert names == {"metadata.jsonl"} | {row["file_name"] for row in rows(data, split)}
    assert {path.name for path in data.iterdir()} == {"train", "dev", "test", "notices"}
    assert not list(data.parent.parent.rglob("evil*"))
    assert not [
        name for name in read_package(packages, NOTO, r"img/google/64/[^/]+\.png") if "evil" in name or "facd" in name
    ]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"test": 400, "dev": 1}, "--test 400: whole families give only 55 of the concepts"),
        ({"test": 50, "dev": 5}, "no concepts are left to train on: there are 55"),
    ],
)
def test_counts_that_do_not_fit(packages: Path, tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_data.build(packages, tmp_path / "data", counts)
    assert {path.name for path in tmp_path.iterdir()} == {"packages"}


def test_a_taken_folder_is_refused(packages: Path, data: Path, tmp_path: Path) -> None:
    for build in (
        lambda: build_data.build(packages, tmp_path, HELD_OUT),
        lambda: emoji_scenes.build(data, tmp_path, SCENES),
    ):
        with pytest.raises(InputError, match="exists: name a new folder"):
            build()


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError,
        match=r"lobehub-fluent-emoji-3d-1.1.0.tgz is missing: get it with: python -m examples.emoji_search.fetch",
    ):
        build_data.build(tmp_path, tmp_path / "data", HELD_OUT)


def test_an_altered_package_is_refused(packages: Path, tmp_path: Path) -> None:
    (packages / PACKAGES[KEYWORDS].file_name).write_bytes(b"altered")
    found = hashlib.sha256(b"altered").hexdigest()
    with pytest.raises(BundleError, match=f"has SHA-256 {found}: expected {PACKAGES[KEYWORDS].sha256}"):
        build_data.build(packages, tmp_path / "data", HELD_OUT)


@pytest.fixture
def npm(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs what lies in the folder of packages, and writes down what it was asked for."""
    program, log = tmp_path / "bin/npm", tmp_path / "asked.txt"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "name, _, version = sys.argv[2].rpartition('@')\n"
        f"open({str(log)!r}, 'a').write(sys.argv[2] + '\\n')\n"
        f"file = pathlib.Path({str(packages)!r}) / (name.lstrip('@').replace('/', '-') + '-' + version + '.tgz')\n"
        "error = 'npm error code E404\\nnpm error 404 Not Found'\n"
        "if not file.exists(): sys.exit('' if '--silent' in sys.argv else error)\n"
        "shutil.copy(file, sys.argv[-1])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return log


def test_fetching_skips_what_is_there_and_right(npm: Path, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    fetch.fetch(folder)
    assert contents(folder) == contents(packages)
    assert npm.read_text().splitlines() == [f"{package.name}@{package.version}" for package in PACKAGES.values()]
    npm.unlink()
    (folder / PACKAGES[KEYWORDS].file_name).write_bytes(b"half a download")
    fetch.fetch(folder)
    assert npm.read_text() == "emojilib@4.0.3\n"
    assert contents(folder) == contents(packages)


def test_a_wrong_tarball_is_not_kept(npm: Path, packages: Path, tmp_path: Path) -> None:
    (packages / PACKAGES[NOTO].file_name).write_bytes(b"another")
    found = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(BundleError, match=f"has SHA-256 {found}: expected {PACKAGES[NOTO].sha256}"):
        fetch.fetch(tmp_path / "fetched")
    assert set(contents(tmp_path / "fetched")) == {PACKAGES[FLUENT].file_name}


def test_npm_that_fails_is_told_in_one_line(npm: Path, packages: Path, tmp_path: Path) -> None:
    (packages / PACKAGES[FLUENT].file_name).unlink()
    with pytest.raises(BackendError, match=r"npm pack @lobehub/fluent-emoji-3d@1.1.0 failed: code E404 404 Not Found$"):
        fetch.fetch(tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_npm_is_needed_only_to_fetch(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    fetch.fetch(packages)
    with pytest.raises(BackendError, match="npm is not installed"):
        fetch.fetch(tmp_path / "fetched")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *[
            (name, f"a {name}")
            for name in ("dog", "glass of milk", "hippopotamus", "unicorn", "ewe", "euro banknote", "bus")
        ],
        *[
            (name, f"an {name}")
            for name in ("owl", "octopus", "umbrella", "hourglass", "ear of corn", "envelope with arrow", "abacus")
        ],
        *[(name, name) for name in ("grapes", "french fries", "skis", "cooked rice", "money with wings", "scissors")],
    ],
)
def test_names_as_captions_say_them(name: str, said: str) -> None:
    assert phrase(name) == said


@pytest.mark.parametrize(
    ("spot", "word", "clear"),
    [
        ((200, 100), "above", True),
        ((200, 300), "below", True),
        ((100, 200), "left of", True),
        ((300, 200), "right of", True),
        ((290, 90), "above", False),
        ((90, 210), "left of", True),
    ],
)
def test_relation_agrees_with_coordinates(spot: tuple[int, int], word: str, clear: bool) -> None:
    assert emoji_scenes.relation(spot, (200, 200)) == word
    assert emoji_scenes.is_clear(spot, (200, 200)) == clear


def is_true(caption: str, objects: list[dict[str, Any]]) -> bool:
    """Whether a caption says how two of these objects lie, by their centres alone."""
    for one, other in itertools.permutations(objects, 2):
        right, down = one["x"] - other["x"], one["y"] - other["y"]
        across = abs(right) >= abs(down)
        word = ("right of" if right > 0 else "left of") if across else ("below" if down > 0 else "above")
        if caption == f"{phrase(one['concept'])} {word} {phrase(other['concept'])}":
            return True
    return False


@pytest.mark.parametrize("split", SCENES)
def test_a_caption_is_true_of_its_own_picture_alone(composed: Path, split: str) -> None:
    all_rows = rows(composed, split)
    assert len(all_rows) == SCENES[split]
    for row in all_rows:
        for caption in row["captions"]:
            assert [other["file_name"] for other in all_rows if is_true(caption, other["objects"])] == [
                row["file_name"]
            ]


@pytest.mark.parametrize("split", SCENES)
def test_twins_show_the_same_and_use_the_same_words(composed: Path, split: str) -> None:
    all_rows = rows(composed, split)
    for one, two in zip(all_rows[::2], all_rows[1::2], strict=True):
        looks = [[(o["concept"], o["style"], o["size"]) for o in row["objects"]] for row in (one, two)]
        spots = [sorted((o["x"], o["y"]) for o in row["objects"]) for row in (one, two)]
        words = [sorted(" ".join(row["captions"]).split()) for row in (one, two)]
        assert looks[0] == looks[1]
        assert spots[0] == spots[1]
        assert words[0] == words[1]


def test_no_sentence_is_written_twice_in_a_split(composed: Path) -> None:
    for split in SCENES:
        written = [caption for row in rows(composed, split) for caption in row["captions"]]
        assert len(written) == len(set(written))
        assert {len(row["captions"]) for row in rows(composed, split)} <= {2, 4}


def shown(folder: Path, split: str) -> set[str]:
    return {item["concept"] for row in rows(folder, split) for item in row["objects"]}


def test_scenes_show_the_things_of_their_own_split(composed: Path, data: Path) -> None:
    for split, source in emoji_scenes.SOURCES.items():
        assert shown(composed, split) <= set(concepts(data, source)) & set(ANIMALS)


def test_pairs_of_seen_are_not_in_train(composed: Path) -> None:
    train, seen = (
        {
            frozenset(p)
            for r in rows(composed, s)
            for p in itertools.combinations([o["concept"] for o in r["objects"]], 2)
        }
        for s in ("train", "seen")
    )
    assert train
    assert seen
    assert train.isdisjoint(seen)


THREE_STYLES = {f"thing {number}": dict.fromkeys(STYLES, Path()) for number in range(200)}
MANY = list(emoji_scenes.scenes(600, random.Random(0), THREE_STYLES, set()))


def test_scenes_have_two_to_four_objects_in_mixed_styles_and_all_relations() -> None:
    assert {len(scene.objects) for scene in MANY} == {2, 3, 4}
    assert {len({item.style for item in scene.objects}) for scene in MANY} == {1, 2, 3}
    words = Counter(
        word
        for scene in MANY
        for caption in scene.captions
        for word in ("left", "right", "above", "below")
        if f" {word} " in caption
    )
    assert min(words.values()) > 0.2 * sum(words.values())


def test_objects_lie_inside_the_canvas_and_apart() -> None:
    for scene in MANY:
        boxes = [(o.x - o.size // 2, o.y - o.size // 2, o.size) for o in scene.objects]
        assert all(min(x, y) >= 0 and max(x, y) + size <= emoji_scenes.CANVAS for x, y, size in boxes)
        for (x, y, size), (x2, y2, size2) in itertools.combinations(boxes, 2):
            assert x + size <= x2 or x2 + size2 <= x or y + size <= y2 or y2 + size2 <= y


def test_objects_take_a_third_to_half_of_the_side() -> None:
    sizes = [item.size / emoji_scenes.CANVAS for scene in MANY for item in scene.objects]
    assert 1 / 3 <= min(sizes) < 0.35 < 0.42 < max(sizes) <= 0.5


def test_captioned_pairs_are_clearly_on_one_axis() -> None:
    for scene in MANY:
        for k in range(0, len(scene.objects) - 1, 2):
            one, other = scene.objects[k : k + 2]
            assert abs(abs(one.x - other.x) - abs(one.y - other.y)) >= emoji_scenes.CLEAR


def test_a_scene_is_drawn_where_it_says(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "red.png")
    item = emoji_scenes.SceneObject("fox", "noto", 100, 200, 60)
    scene = emoji_scenes.Scene([item], [], (240, 240, 240))
    pixels = np.asarray(emoji_scenes.draw_scene(scene, {"fox": {"noto": tmp_path / "red.png"}}))
    red = np.argwhere((pixels == (255, 0, 0)).all(-1))
    assert pixels.shape == (384, 384, 3)
    assert (red.min(0).tolist(), red.max(0).tolist()) == ([170, 70], [229, 129])


def test_the_same_seed_composes_the_same_bytes(composed: Path, data: Path, tmp_path: Path) -> None:
    emoji_scenes.build(data, tmp_path / "again", SCENES)
    emoji_scenes.build(data, tmp_path / "other", SCENES, seed=1)
    assert contents(tmp_path / "again") == contents(composed)
    assert rows(tmp_path / "other", "test") != rows(composed, "test")


def test_an_odd_count_leaves_the_last_without_its_twin() -> None:
    assert list(emoji_scenes.scenes(5, random.Random(0), THREE_STYLES, set())) == MANY[:5]


def test_more_scenes_than_pairs_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\d things are too few for this many scenes without a repeated pair: ask"):
        emoji_scenes.build(data, tmp_path / "scenes", SCENES | {"dev": 2000})
    assert not list(tmp_path.iterdir())


def test_composing_needs_the_pictures_of_the_first_example(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata.jsonl is missing: make it with: python -m examples.emoji_search"):
        emoji_scenes.build(tmp_path, tmp_path / "scenes", SCENES)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "captions": ["a"]}\n')
    with pytest.raises(BundleError, match=r"metadata.jsonl:1 was not written by examples/emoji_search \(KeyError"):
        emoji_scenes.build(tmp_path, tmp_path / "scenes", SCENES)
