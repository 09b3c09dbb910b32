"""An index in parts: together they hold what one index would, wherever and however often they are encoded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camp_sdk import BundleError, InputError, Retriever
from camp_sdk.cluster import encoding
from camp_sdk.cluster.building import Built, build_parts
from camp_sdk.cluster.encoding import Encoder, PartJob, encode_part
from camp_sdk.cluster.parts import DESCRIPTION, Parts, make_parts, read_parts
from camp_sdk.cluster.sources import Source, find_sources
from camp_sdk.runtime.errors import MissingExtraError
from tests.helpers.command import Camp

COUNT = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, two of them in a subfolder."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    (folder / "more").mkdir()
    for number in range(COUNT):
        picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        picture.save(folder / ("more" if number < 2 else ".") / f"{number}.png")
    return folder


@pytest.fixture
def encoder(picture_bundle: Path) -> Encoder:
    return Encoder(picture_bundle, "onnxruntime", threads=1)


def contents(built: Built, retriever: Retriever) -> dict[str, bytes]:
    """The global vector of each item of all parts by its key; a key in two parts is an error."""
    found: dict[str, bytes] = {}
    for path in built.parts.paths:
        with retriever.open_index(path) as index:
            keys = list(index.keys())
            assert not found.keys() & set(keys)
            if keys:
                tensors = index.gallery(keys).encoded.tensors
                found |= {key: b"".join(t[k].tobytes() for t in tensors.values()) for k, key in enumerate(keys)}
    return found


def whole(photos: Path, retriever: Retriever, path: Path) -> dict[str, bytes]:
    """The same of one index that holds everything."""
    sources = find_sources(str(photos))
    with retriever.open_index(path, create=True) as index:
        index.add([Path(source.location) for source in sources], [source.key for source in sources])
        tensors = index.gallery([source.key for source in sources]).encoded.tensors
    return {source.key: b"".join(t[k].tobytes() for t in tensors.values()) for k, source in enumerate(sources)}


def test_parts_together_hold_what_one_index_holds(
    photos: Path, encoder: Encoder, picture_retriever: Retriever, tmp_path: Path
) -> None:
    done: list[int] = []
    built = build_parts(tmp_path / "parts", find_sources(str(photos)), encoder, 3, on_progress=done.append)
    assert (built.encoded, built.unchanged, built.skipped, sum(done)) == (COUNT, 0, (), COUNT)
    found = contents(built, picture_retriever)
    assert found == whole(photos, picture_retriever, tmp_path / "whole.index")
    assert {"more/0.png", "more/1.png", "2.png"} <= found.keys()


def test_another_call_encodes_only_what_is_new(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    sources = find_sources(str(photos))
    build_parts(tmp_path / "parts", sources[:7], encoder, 3)
    again = build_parts(tmp_path / "parts", sources, encoder)
    assert (again.encoded, again.unchanged, again.parts.count) == (COUNT - 7, 7, 3)


def test_a_part_that_was_interrupted_goes_on_to_the_same_index(
    photos: Path,
    encoder: Encoder,
    picture_retriever: Retriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "REPORT_ITEMS", 2)
    sources = find_sources(str(photos))
    parts = make_parts(tmp_path / "parts", 1, picture_retriever.bundle.fingerprint)
    steps = encode_part(PartJob(0, parts.paths[0], sources, encoder))
    assert [next(steps).encoded for _ in range(2)] == [2, 2]
    steps.close()  # type: ignore[attr-defined] # it is a generator, which is declared as what callers need
    built = build_parts(tmp_path / "parts", sources, encoder)
    assert (built.encoded, built.unchanged) == (COUNT - 4, 4)
    assert contents(built, picture_retriever) == whole(photos, picture_retriever, tmp_path / "whole.index")


def test_a_picture_that_cannot_be_read_is_reported_and_the_others_are_encoded(
    photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    listed = [str(photos / "2.png"), "broken.png", "missing.png", str(photos / "3.png")]
    (tmp_path / "list.txt").write_text("\n".join([*listed, "", listed[0]]), encoding="utf-8")
    built = build_parts(tmp_path / "parts", find_sources(str(tmp_path / "list.txt")), encoder, 2)
    assert (built.encoded, sorted(one.name for one in built.skipped)) == (2, ["broken.png", "missing.png"])
    assert all(one.reason for one in built.skipped)


def test_pictures_of_a_store_are_fetched_once(
    photos: Path,
    encoder: Encoder,
    picture_retriever: Retriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fsspec", reason="fsspec, of the extra ray, is not installed")
    sources = find_sources(f"file://{photos}")
    assert all(source.is_remote for source in sources)
    built = build_parts(tmp_path / "parts", sources, encoder, 2)
    assert contents(built, picture_retriever) == whole(photos, picture_retriever, tmp_path / "whole.index")

    def fetch(source: Source) -> bytes:
        raise AssertionError(source)

    monkeypatch.setattr(Source, "fetch", fetch)
    again = build_parts(tmp_path / "parts", sources, encoder)
    assert (again.encoded, again.unchanged) == (0, COUNT)


def test_what_cannot_be_fetched_is_reported(
    photos: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec", reason="fsspec, of the extra ray, is not installed")
    monkeypatch.setattr("camp_sdk.cluster.sources.MAX_PICTURE_BYTES", 100)
    sources = [Source("gone", f"file://{photos}/gone.png"), Source("large", f"file://{photos}/2.png")]
    built = build_parts(tmp_path / "parts", sources, encoder, 1)
    assert [(one.name, one.index) for one in built.skipped] == [("gone", 0), ("large", 1)]
    assert "has more than" in built.skipped[1].reason


@pytest.mark.parametrize(
    "line",
    ["reference://a/b.png", "simplecache::s3://a/b.png", "zip://a.png::file:///b.zip", "ssh://host/a.png", "s3://"],
)
def test_only_urls_of_storage_are_read(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected a URL of one of"):
        find_sources(str(tmp_path / "list.txt"))


def test_an_empty_list_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty.txt", "is empty"), ("bytes.txt", "not a text file")):
        with pytest.raises(InputError, match=message):
            find_sources(str(tmp_path / name))


def test_without_fsspec_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"\[ray\]"):
        find_sources(f"file://{tmp_path}")


def test_a_folder_keeps_its_number_of_parts_and_its_bundle(encoder: Encoder, tmp_path: Path) -> None:
    made = make_parts(tmp_path / "parts", 4, "a" * 64)
    assert read_parts(made.folder) == made == make_parts(made.folder, None, "a" * 64)
    with pytest.raises(InputError, match=r"`parts` is 5, and .* has 4"):
        make_parts(made.folder, 5, "a" * 64)
    with pytest.raises(BundleError, match="made by another bundle"):
        build_parts(made.folder, [], encoder, 4)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match="expected a new folder"):
        make_parts(tmp_path / "other", 4, "a" * 64)
    with pytest.raises(BundleError, match="camp index build"):
        read_parts(tmp_path / "other")


def damaged() -> Iterator[str]:
    good = {"format": 1, "count": 2, "bundle": "a"}
    yield from ("", "[]", "null", "[" * 100_000, json.dumps(good | {"format": 2}))
    yield from (json.dumps(good | {"count": count}) for count in (0, -1, True, "2", 2.0, 10**9))
    yield from (json.dumps({k: v for k, v in good.items() if k != name}) for name in good)


@pytest.mark.parametrize("text", list(damaged()), ids=lambda text: text[:30])
def test_a_damaged_description_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="damaged"):
        read_parts(tmp_path)


def test_each_key_has_the_same_part_everywhere() -> None:
    """Recorded: an item that another version put into another part would be in two of them."""
    parts = Parts(Path("parts"), 7, "a")
    assert [parts.part_of(key) for key in ("a.png", "b.png", "ä/c.png", "s3://bucket/d.png")] == [2, 5, 3, 1]


def test_the_command_reports_what_it_did(camp: Camp, photos: Path, picture_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text(f"{photos}/2.png\nbroken.png\n", encoding="utf-8")
    command = ("index", "build", tmp_path / "parts", "--from", tmp_path / "list.txt", "--bundle", picture_bundle)
    first = camp(*command, "--parts", 2, "--backend", "onnxruntime", "--json")
    found = json.loads(first.out)
    assert [one.pop("key") for one in found["skipped"]] == ["broken.png"]
    assert {name: found[name] for name in ("parts", "encoded", "unchanged", "restarts")} == {
        "parts": 2,
        "encoded": 1,
        "unchanged": 0,
        "restarts": 0,
    }
    again = camp(*command, "--backend", "onnxruntime")
    assert (again.code, again.out) == (0, f"{tmp_path}/parts: 2 parts; 0 encoded, 1 unchanged; 1 cannot be read\n")
    assert "broken.png" in again.err
