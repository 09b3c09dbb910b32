"""Encoding pictures of any kind: threads and batches do not change the gallery, and no thread is left running."""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from camp_sdk import Bundle, Gallery, InputError, Retriever, Skipped
from camp_sdk import features as features_module
from camp_sdk.arguments import distinct
from camp_sdk.features import FeatureReader
from camp_sdk.pictures import PictureError, read_picture, read_pixels
from camp_sdk.runtime.manifest import FITS
from camp_sdk.runtime.open_engines import OpenEngines
from camp_sdk.runtime.threads import map_ahead
from tests.helpers.manifests import put, rewrite
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

Pixels = NDArray[np.float32]
SIDE = 96
QUERY = "a small red circle"


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20 + seed % 7, 30 - seed % 5, 3), dtype=np.uint8)


def as_bytes(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class AsPath(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seventy small pictures: two full batches and a part of one."""
    folder = tmp_path_factory.mktemp("pictures")
    found = [folder / f"{seed:02}.png" for seed in range(70)]
    for seed, path in enumerate(found):
        path.write_bytes(as_bytes(picture(seed)))
    return found


def tensors(gallery: Gallery) -> dict[str, NDArray[Any]]:
    return dict(gallery.encoded.tensors)


def assert_same(one: Gallery, other: Gallery) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, array in tensors(one).items():
        np.testing.assert_array_equal(array, tensors(other)[name])


def as_seen(pixels: Pixels) -> Pixels:
    """In place of a vision graph: the pixels themselves, [b, 3, H, W] -> [b, 1, 3 * H * W]."""
    return pixels.reshape(len(pixels), 1, -1)


def read_all(
    bundle: Path, images: Iterable[Any], vision: Callable[[Pixels], Pixels] = as_seen, threads: int | None = None
) -> Pixels:
    manifest = Bundle(bundle).manifest
    reader = FeatureReader(manifest.pixels, manifest.feature_width, vision, threads)
    return np.concatenate([batch.features for batch in reader.batches(images) if batch.features is not None])


# The same, however it is given and read


@pytest.mark.parametrize("threads", [1, 2, 7, None])
@pytest.mark.parametrize("batch", [1, 5, 32, 100])
def test_threads_and_batches_do_not_matter(
    picture_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, threads: int | None, batch: int
) -> None:
    monkeypatch.setattr(features_module, "ENCODE_IMAGES", batch)
    spec = Bundle(picture_bundle).manifest.pixels
    assert spec is not None
    one_by_one = np.stack([read_picture(path, SIDE, SIDE, "it") for path in paths])
    expected = as_seen(features_module.normalise(one_by_one, spec))
    np.testing.assert_array_equal(read_all(picture_bundle, iter(paths), threads=threads), expected)


def test_kinds_and_sizes_may_be_mixed(picture_retriever: Retriever, paths: list[Path]) -> None:
    forms: list[Callable[[Path], Any]] = [
        lambda path: path,
        str,
        Path.read_bytes,
        Image.open,
        lambda path: Image.open(path).convert("RGB"),
        lambda path: np.asarray(Image.open(path)),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: bytearray(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        AsPath,
    ]
    mixed = (form(path) for form, path in zip(itertools.cycle(forms), paths, strict=False))
    assert_same(picture_retriever.encode_images(mixed), picture_retriever.encode_images(paths))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_the_retriever(picture_bundle: Path, paths: list[Path], threads: int) -> None:
    with Retriever(picture_bundle, "onnxruntime", threads=threads) as retriever:
        whole = retriever.encode_images(paths)
        assert_same(retriever.encode_images(iter(paths)), whole)
    assert whole.documents == tuple(map(str, paths))


def test_one_lazily_opened_picture_given_many_times(picture_bundle: Path, paths: list[Path]) -> None:
    with Image.open(paths[0]) as opened:
        read = read_all(picture_bundle, [opened] * 40, threads=8)
    np.testing.assert_array_equal(read, read_all(picture_bundle, [paths[0]] * 40))


def test_one_picture_with_a_palette_given_many_times(picture_bundle: Path) -> None:
    drawn = Image.new("P", (30, 20))
    drawn.putpalette([200, 20, 90])
    read = read_all(picture_bundle, [drawn] * 40, threads=8)
    np.testing.assert_array_equal(read, read_all(picture_bundle, [drawn.convert("RGB")] * 40))


def test_a_generator_may_close_what_it_gave(picture_bundle: Path, paths: list[Path]) -> None:
    def opened() -> Iterator[Image.Image]:
        for path in paths:
            with Image.open(path) as one:
                yield one

    np.testing.assert_array_equal(read_all(picture_bundle, opened()), read_all(picture_bundle, paths))


def test_frames_of_one_picture(picture_bundle: Path) -> None:
    frames = [Image.new("RGB", (20, 20), (seed, 0, 0)) for seed in range(40)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(buffer) as film:
        read = read_all(picture_bundle, ImageSequence.Iterator(film), threads=4)
    np.testing.assert_array_equal(read, read_all(picture_bundle, frames))


@pytest.mark.parametrize("fit", FITS)
def test_pictures_are_fitted_as_the_manifest_says(
    picture_bundle: Path, paths: list[Path], tmp_path: Path, fit: str
) -> None:
    copy = Path(shutil.copytree(picture_bundle, tmp_path / "bundle"))
    fitted = [read_picture(path, SIDE, SIDE, "it", fit) for path in paths[:4]]
    read = read_all(rewrite(copy, put(fit, "pixels", "fit")), paths[:4])
    np.testing.assert_array_equal(read, read_all(picture_bundle, fitted))


def test_a_plot_shows_what_was_seen(picture_retriever: Retriever, tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (2 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
    explanation = picture_retriever.explain(QUERY, wide)
    assert explanation.pixels is not None
    cropped = dataclasses.replace(explanation, pixels=dataclasses.replace(explanation.pixels, fit="crop"))
    cropped.plot(tmp_path / "cropped.png", wide)
    explanation.plot(tmp_path / "middle.png", wide[:, SIDE:-SIDE])
    assert (tmp_path / "cropped.png").read_bytes() == (tmp_path / "middle.png").read_bytes()


def test_encoded_bytes_rank_texts_and_make_pairs(picture_retriever: Retriever, paths: list[Path]) -> None:
    data = paths[0].read_bytes()
    assert picture_retriever.rank(data, CAPTIONS) == picture_retriever.rank(paths[0], CAPTIONS)
    scores = picture_retriever.score([(data, QUERY), (bytes(bytearray(data)), QUERY), (paths[0], QUERY)])
    assert len(set(scores.tolist())) == 1


def test_bytes_in_place_of_a_list(picture_retriever: Retriever, paths: list[Path]) -> None:
    with pytest.raises(InputError, match="images is bytes: expected a list of images"):
        picture_retriever.encode_images(paths[0].read_bytes())


@pytest.mark.parametrize("form", [io.BytesIO, bytearray, memoryview])
def test_one_file_in_place_of_a_list(
    picture_retriever: Retriever, paths: list[Path], form: Callable[[bytes], Any]
) -> None:
    with pytest.raises(InputError, match=rf"images is {form.__name__}: expected a list of images"):
        picture_retriever.encode_images(form(paths[0].read_bytes()))
    with pytest.raises(InputError, match="expected a list of images"):
        picture_retriever.encode_images(AsPath(paths[0]))


def test_a_path_of_any_kind_is_the_document(picture_retriever: Retriever, paths: list[Path]) -> None:
    with os.scandir(paths[0].parent) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)[:3]
    assert picture_retriever.encode_images([*listed, AsPath(paths[3])]).documents == tuple(map(str, paths[:4]))


def test_paths_of_any_kind_are_scored_once(picture_retriever: Retriever, paths: list[Path]) -> None:
    images, where = distinct([AsPath(paths[0]), paths[0], AsPath(paths[1]), AsPath(paths[0])])
    assert (len(images), where.tolist()) == (2, [0, 0, 1, 0])
    file = io.BytesIO(paths[0].read_bytes())
    scores = picture_retriever.score([(file, QUERY), (file, QUERY), (paths[0], QUERY)])
    assert len(set(scores.tolist())) == 1


def test_a_generator_may_close_and_reuse_its_files(picture_bundle: Path, paths: list[Path]) -> None:
    def opened() -> Iterator[Any]:
        buffer = bytearray(1 << 14)
        for path in paths[:20]:
            with path.open("rb") as file:
                yield file
            with path.open("rb") as file:
                yield memoryview(buffer)[: file.readinto(buffer)]

    twice = [path for path in paths[:20] for _ in range(2)]
    np.testing.assert_array_equal(read_all(picture_bundle, opened(), threads=4), read_all(picture_bundle, twice))


def test_files_are_read_in_the_callers_thread(picture_bundle: Path, paths: list[Path]) -> None:
    threads: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    read_all(picture_bundle, [Watched(path.read_bytes()) for path in paths[:10]], threads=4)
    assert threads == {threading.get_ident()}


# Ahead of the network, but not far


def test_a_generator_is_taken_two_batches_ahead_at_most(picture_retriever: Retriever) -> None:
    taken = done = furthest = 0

    def many() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken, furthest
        for seed in range(200):
            taken += 1
            furthest = max(furthest, taken - done)
            yield picture(seed)

    def receive(count: int) -> None:
        nonlocal done
        done += count

    picture_retriever.encode_images(many(), on_progress=receive)
    assert (taken, done) == (200, 200)
    assert furthest <= 2 * features_module.ENCODE_IMAGES


def test_the_next_batch_is_decoded_while_the_network_runs(
    picture_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()

    def read(image: Path, *arguments: Any) -> NDArray[np.uint8]:
        if image == paths[40]:
            assert vision_runs.wait(60)
            second.set()
        return read_pixels(image, *arguments)

    vision_runs = threading.Event()

    def vision(pixels: Pixels) -> Pixels:
        vision_runs.set()
        assert second.wait(60)
        return as_seen(pixels)

    monkeypatch.setattr(features_module, "read_pixels", read)
    assert len(read_all(picture_bundle, paths, vision, threads=2)) == 70


# Nothing is left running


def failing_after(images: list[Any], count: int) -> Iterator[Any]:
    yield from images[:count]
    raise LookupError("the caller's own")


def fail(*arguments: Any) -> Any:
    raise LookupError("the caller's own")


@pytest.mark.parametrize("where", ["picture", "generator", "progress", "network", "another kind"])
def test_an_error_leaves_no_thread(
    picture_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    images: Iterable[Any] = paths
    if where == "picture":
        images = [b"broken", *paths]
    if where == "generator":
        images = failing_after(paths, 20)
    if where == "another kind":
        images = [*paths[:20], None]
    before = threading.enumerate()
    with Retriever(picture_bundle, "onnxruntime", threads=2) as retriever:
        if where == "network":
            monkeypatch.setattr(OpenEngines, "__getitem__", lambda engines, graph: fail(graph))
        with pytest.raises((InputError, LookupError)) as raised:
            retriever.encode_images(images, on_progress=fail if where == "progress" else ignore)
        assert [thread for thread in threading.enumerate() if thread.name.startswith("camp-sdk")] == []
        assert threading.enumerate() == before
        assert raised.type is {"picture": PictureError, "another kind": InputError}.get(where, LookupError)


def ignore(count: int) -> None: ...


def test_what_waits_is_cancelled() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        assert item == 0 or gate.wait(60)
        return item

    results = map_ahead(work, range(100), 1, 10, lambda item: False)
    assert next(results) == 0
    later = threading.Timer(0.3, gate.set)  # closing waits for the one that runs
    later.start()
    results.close()
    later.join()
    assert begun in ([0], [0, 1])


# Broken pictures


def with_broken(paths: list[Path], *places: int) -> list[Any]:
    images: list[Any] = list(paths)
    for place in places:
        images.insert(place, b"broken")
    return images


@pytest.mark.parametrize("places", [(0,), (5, 40), (70,), (31, 32, 33), (64, 65, 66, 67, 68, 69, 70)])
def test_what_is_kept_is_as_if_the_broken_had_not_been_there(
    picture_retriever: Retriever, paths: list[Path], places: tuple[int, ...]
) -> None:
    images, heard = with_broken(paths, *places), list[int]()
    for form in (images, iter(images)):
        gallery = picture_retriever.encode_images(form, on_progress=heard.append, skip_broken=True)
        assert_same(gallery, picture_retriever.encode_images(paths))
        assert gallery.documents == tuple(map(str, paths))
        assert [skipped.index for skipped in gallery.skipped] == list(places)
    assert sum(heard) == 2 * len(images)


def test_progress_tells_of_those_left_out_behind_the_last_batch(
    picture_retriever: Retriever, paths: list[Path]
) -> None:
    heard: list[int] = []
    picture_retriever.encode_images([*paths[:32], b"broken"], on_progress=heard.append, skip_broken=True)
    assert sum(heard) == 33


def test_a_skipped_picture_is_named_with_its_reason(
    picture_retriever: Retriever, paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    images = [paths[0], tmp_path / "broken.png", paths[1], np.zeros((40, 50, 3), np.uint8), b""]
    with caplog.at_level(logging.WARNING, "camp_sdk"):
        gallery = picture_retriever.encode_images(images, skip_broken=True, max_megapixels=0.001)
    unknown = "cannot be read as a picture: it is in no format that Pillow knows"
    size = "has 50 x 40 pixels: at most 0.001 megapixels are decoded; raise the limit with `max_megapixels`"
    assert gallery.skipped == (
        Skipped(1, str(tmp_path / "broken.png"), unknown),
        Skipped(3, "image 3", size),
        Skipped(4, "image 4", unknown),
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"left out {skipped.name}: {skipped.reason}" for skipped in gallery.skipped
    ]
    assert {record.name for record in caplog.records} == {"camp_sdk"}


@pytest.mark.parametrize("form", [list, iter])
def test_names_stay_with_what_is_kept(
    picture_retriever: Retriever, paths: list[Path], form: Callable[[list[Any]], Iterable[Any]]
) -> None:
    names = ["a", "b", "c", "d"]
    images = with_broken(paths[:3], 1)
    gallery = picture_retriever.encode_images(form(images), names, skip_broken=True)
    assert (gallery.documents, [one.name for one in gallery.skipped]) == (("a", "c", "d"), ["b"])
    matches = picture_retriever.rank(QUERY, gallery)
    assert {match.corpus_id: match.document for match in matches} == {0: "a", 1: "c", 2: "d"}
    for wrong in (names[:3], [*names, "e"], []):
        with pytest.raises(InputError, match=f"{len(wrong)} names for 4 images: expected one each"):
            picture_retriever.encode_images(form(images), wrong, skip_broken=True)


def test_a_damaged_picture_is_skipped_in_every_form(
    picture_retriever: Retriever, paths: list[Path], tmp_path: Path
) -> None:
    data = bytearray(as_bytes(np.tile(picture(1), (4, 4, 1))))
    data[data.index(b"IDAT") + 900] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    closed = io.BytesIO(data)
    closed.close()
    with Image.open(io.BytesIO(data)) as opened:
        forms = [bytes(data), tmp_path / "flipped.png", io.BytesIO(data), closed, opened, opened]
        gallery = picture_retriever.encode_images([*forms, paths[0]], skip_broken=True)
    assert [skipped.index for skipped in gallery.skipped] == [0, 1, 2, 3, 4, 5]
    assert len({skipped.reason for skipped in gallery.skipped}) == 2  # the closed one has its own
    with pytest.raises(PictureError, match=r"image 0 cannot be read as a picture: .* closed file"):
        picture_retriever.encode_images([closed])


def test_all_skipped(picture_retriever: Retriever) -> None:
    with pytest.raises(InputError, match="none of the 40 pictures can be read; the first, image 0: cannot be read"):
        picture_retriever.encode_images([b"broken"] * 40, skip_broken=True)


@pytest.mark.parametrize("wrong", [None, np.zeros((4, 4), np.uint8), np.zeros((36, FEATURE_WIDTH), np.float32)])
def test_what_is_no_picture_by_its_type_is_never_skipped(
    picture_retriever: Retriever, paths: list[Path], wrong: Any
) -> None:
    with pytest.raises(InputError, match="image 1 is "):
        picture_retriever.encode_images([paths[0], wrong], skip_broken=True)


def test_bad_features_are_never_skipped(feature_retriever: Retriever, features: NDArray[np.float32]) -> None:
    features[3, 2] = np.nan
    with pytest.raises(InputError, match="image 3 has features that are NaN"):
        feature_retriever.encode_images(features, skip_broken=True)


def test_a_gallery_tells_once_what_was_skipped(picture_retriever: Retriever, paths: list[Path], tmp_path: Path) -> None:
    gallery = picture_retriever.encode_images([*paths[:2], b""], skip_broken=True)
    gallery.save(tmp_path / "gallery")
    assert len(gallery.skipped) == 1
    assert picture_retriever.open_gallery(tmp_path / "gallery").skipped == ()
    assert gallery.select([0]).skipped == picture_retriever.encode_texts(CAPTIONS).skipped == ()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "80", None])
def test_a_limit_that_is_none(picture_retriever: Retriever, paths: list[Path], limit: Any) -> None:
    with pytest.raises(InputError, match=r"`max_megapixels` is .*: expected a number above 0"):
        picture_retriever.encode_images(paths, max_megapixels=limit)


class OddPath(os.PathLike[str]):
    """Stands for a path, and raises or returns what is none."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> str:
        if isinstance(self.path, Exception):
            raise self.path
        return self.path  # type: ignore[no-any-return]  # the fault under test


@pytest.mark.parametrize("path", ["a/../b\0/../c.png", "b\0c.png", "\ud800/../x.png", "a" * 300 + "/../x.png"])
def test_a_path_that_leads_nowhere_is_a_broken_picture(
    picture_retriever: Retriever, paths: list[Path], path: str
) -> None:
    gallery = picture_retriever.encode_images([path, paths[0]], skip_broken=True)
    assert [one.name for one in gallery.skipped] == [path]
    with pytest.raises(PictureError, match="cannot be read as a picture"):
        picture_retriever.encode_images([path])


@pytest.mark.parametrize("path", [RuntimeError("x"), 3])
def test_an_object_that_gives_no_path_is_named(picture_retriever: Retriever, paths: list[Path], path: Any) -> None:
    with pytest.raises(InputError, match="image 1 gives no path"):
        picture_retriever.encode_images([paths[0], OddPath(path)], skip_broken=True)


@pytest.mark.skipif(os.name == "nt", reason="a working folder cannot be deleted")
def test_a_relative_path_in_a_deleted_folder_is_a_broken_picture(
    picture_retriever: Retriever, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    gallery = picture_retriever.encode_images(["x.png", paths[0].absolute()], skip_broken=True)
    assert [one.name for one in gallery.skipped] == ["x.png"]
    assert gallery.files == (str(paths[0]),)
