"""Galleries on disk: saved equals fresh, and what does not fit is refused."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import BundleError, Gallery, InputError, Retriever
from camp_sdk import gallery as gallery_module
from camp_sdk.runtime import files
from tests.helpers.tiny import CAPTIONS


def saved(gallery: Gallery, folder: Path) -> Path:
    gallery.save(folder)
    return folder


@pytest.fixture
def images(feature_retriever: Retriever, features: NDArray[np.float32]) -> Gallery:
    return feature_retriever.encode_images(features, names=[f"image {index}" for index in range(10)])


@pytest.fixture
def texts(feature_retriever: Retriever) -> Gallery:
    return feature_retriever.encode_texts(CAPTIONS)


def test_saved_images_score_as_fresh_ones(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path
) -> None:
    opened = feature_retriever.open_gallery(saved(images, tmp_path / "gallery"))
    fresh = feature_retriever.score_matrix(images, texts, logits=True)
    np.testing.assert_array_equal(feature_retriever.score_matrix(opened, texts, logits=True), fresh)


def test_saved_texts_score_as_fresh_ones(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path
) -> None:
    opened = feature_retriever.open_gallery(saved(texts, tmp_path / "gallery"))
    fresh = feature_retriever.score_matrix(images, texts, logits=True)
    np.testing.assert_array_equal(feature_retriever.score_matrix(images, opened, logits=True), fresh)


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_an_opened_gallery_is_mapped_and_keeps_its_names(
    feature_retriever: Retriever, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    gallery: Gallery = request.getfixturevalue(kind)
    opened = feature_retriever.open_gallery(saved(gallery, tmp_path / "gallery"))
    assert (opened.kind, len(opened), opened.documents) == (gallery.kind, len(gallery), gallery.documents)
    assert all(isinstance(array, np.memmap) for array in opened.encoded.tensors.values())
    assert opened.nbytes == gallery.nbytes


def test_names_may_be_missing(feature_retriever: Retriever, features: NDArray[np.float32], tmp_path: Path) -> None:
    folder = saved(feature_retriever.encode_images(features), tmp_path / "gallery")
    assert feature_retriever.open_gallery(folder).documents == (None,) * 10


def test_the_encoded_tensors_fit_the_contract(feature_retriever: Retriever, images: Gallery) -> None:
    for spec in feature_retriever.bundle.manifest.image_tensors:
        array = images.encoded.tensors[spec.name]
        assert array.dtype == spec.dtype
        assert len(array.shape) == len(spec.shape)


def test_a_gallery_of_another_bundle_is_refused(picture_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"was made by another bundle .*; encode it again with this bundle"):
        picture_retriever.open_gallery(saved(images, tmp_path / "gallery"))


@pytest.mark.parametrize("name", ["image.V", "image.global"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda array: array.astype(np.float64), id="dtype"),
        pytest.param(lambda array: array[..., :-1], id="width"),
        pytest.param(lambda array: array[..., None], id="axes"),
    ],
)
def test_a_tensor_of_another_form_is_refused(
    feature_retriever: Retriever,
    images: Gallery,
    tmp_path: Path,
    name: str,
    change: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    folder = saved(images, tmp_path / "gallery")
    np.save(folder / f"{name}.npy", change(images.encoded.tensors[name]))
    with pytest.raises(BundleError, match=rf"{name}\.npy is .*, expected float32 .*; encode the gallery again"):
        feature_retriever.open_gallery(folder)


def test_tensors_that_disagree_on_the_number_of_images(
    feature_retriever: Retriever, images: Gallery, tmp_path: Path
) -> None:
    folder = saved(images, tmp_path / "gallery")
    np.save(folder / "image.global.npy", images.encoded.tensors["image.global"][:-1])
    with pytest.raises(BundleError, match="disagree on the number of images"):
        feature_retriever.open_gallery(folder)


@pytest.mark.parametrize(
    "change", [lambda lengths: lengths[:-1], lambda lengths: lengths + 1, lambda lengths: lengths * 0]
)
def test_lengths_that_do_not_fit_the_words(
    feature_retriever: Retriever, texts: Gallery, tmp_path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    folder = saved(texts, tmp_path / "gallery")
    np.save(folder / "lengths.npy", change(np.load(folder / "lengths.npy")))
    with pytest.raises(BundleError, match="disagree on the number of texts or words"):
        feature_retriever.open_gallery(folder)


def test_a_wrong_number_of_names(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    folder = saved(images, tmp_path / "gallery")
    about = json.loads((folder / "gallery.json").read_text())
    (folder / "gallery.json").write_text(json.dumps(about | {"documents": ["one"]}))
    with pytest.raises(BundleError, match="10 items but 1 names; encode it again"):
        feature_retriever.open_gallery(folder)


@pytest.mark.parametrize("name", ["image.V.npy", "image.global.npy", "gallery.json"])
def test_a_missing_file_is_named(feature_retriever: Retriever, images: Gallery, tmp_path: Path, name: str) -> None:
    folder = saved(images, tmp_path / "gallery")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        feature_retriever.open_gallery(folder)


def test_a_truncated_file_is_named(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    file = saved(images, tmp_path / "gallery") / "image.V.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"image\.V\.npy cannot be opened"):
        feature_retriever.open_gallery(file.parent)


def test_pickled_objects_are_refused(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    folder = saved(images, tmp_path / "gallery")
    np.save(folder / "image.V.npy", np.array([{"an": "object"}], object))
    with pytest.raises(BundleError, match=r"image\.V\.npy cannot be opened"):
        feature_retriever.open_gallery(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "5",
        "[]",
        "{}",
        '{"format": 2, "kind": "image", "bundle": "", "documents": []}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": 1, "kind": {}, "precision": [], "bundle": "", "documents": []}',
        "9" * 10_000,
    ],
    ids=range(10),
)
def test_metadata_of_another_kind(feature_retriever: Retriever, images: Gallery, tmp_path: Path, text: str) -> None:
    folder = saved(images, tmp_path / "gallery")
    (folder / "gallery.json").write_text(text)
    with pytest.raises(BundleError, match=r"gallery\.json is broken .*encode the gallery again"):
        feature_retriever.open_gallery(folder)


def test_saving_replaces_an_older_gallery(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path
) -> None:
    saved(texts, tmp_path / "gallery")
    opened = feature_retriever.open_gallery(saved(images, tmp_path / "gallery"))
    assert opened.kind == "image"
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_an_opened_gallery_can_be_saved_over_itself(
    feature_retriever: Retriever, images: Gallery, tmp_path: Path
) -> None:
    opened = feature_retriever.open_gallery(saved(images, tmp_path / "gallery"))
    again = feature_retriever.open_gallery(saved(opened, tmp_path / "gallery"))
    np.testing.assert_array_equal(again.encoded.tensors["image.V"], images.encoded.tensors["image.V"])


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_not_a_gallery_is_not_overwritten(images: Gallery, tmp_path: Path, folder: bool) -> None:
    taken = tmp_path / "taken"
    precious = taken / "precious.txt" if folder else taken
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("keep")
    with pytest.raises(
        InputError, match="taken exists and is not a gallery, or holds other files too: name another folder"
    ):
        images.save(taken)
    assert precious.read_text() == "keep"


def fail_at_second_array(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    save = np.save

    def fails(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        save(*args, **options)

    monkeypatch.setattr(np, "save", fails)


def test_a_failed_save_leaves_nothing(images: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_second_array(monkeypatch)
    with pytest.raises(OSError, match="no space"):
        images.save(tmp_path / "gallery")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_older_gallery(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(texts, tmp_path / "gallery")
    fail_at_second_array(monkeypatch)
    with pytest.raises(OSError, match="no space"):
        images.save(tmp_path / "gallery")
    assert feature_retriever.open_gallery(tmp_path / "gallery").kind == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_a_gallery_with_something_else_in_it_is_not_replaced(images: Gallery, tmp_path: Path) -> None:
    folder = saved(images, tmp_path / "gallery")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="or holds other files too"):
        images.save(folder)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("step", ["rename", "replace"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_interrupt_between_the_renames_leaves_one_of_the_two(
    feature_retriever: Retriever,
    images: Gallery,
    texts: Gallery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    done: bool,
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)  # as where the system has none
    saved(texts, tmp_path / "gallery")
    real = getattr(Path, step)

    def interrupted(self: Path, target: Path) -> Path:
        monkeypatch.undo()  # what mends it may rename again
        if done:
            real(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.save(tmp_path / "gallery")
    expected = "image" if (step, done) == ("replace", True) else "text"
    assert feature_retriever.open_gallery(tmp_path / "gallery").kind == expected
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_a_gallery_is_saved_over_itself_from_inside(
    feature_retriever: Retriever, images: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved(images, tmp_path / "gallery"))
    images.save(".")
    assert len(feature_retriever.open_gallery(tmp_path / "gallery")) == len(images)


@pytest.mark.parametrize("indices", [[99], [-99], 3, [1.5], [[1, 2]], None])
def test_indices_that_are_none_are_refused(images: Gallery, indices: Any) -> None:
    with pytest.raises(InputError, match="select"):
        images.select(indices)


def test_a_tuple_selects_as_a_list_does(images: Gallery) -> None:
    assert images.select((2, 0)).documents == images.select([2, 0]).documents


def test_a_link_is_followed(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    for name in ("there", "not yet there"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        (tmp_path / "there").mkdir(exist_ok=True)
        images.save(link)
        assert link.is_symlink()
        assert len(feature_retriever.open_gallery(tmp_path / name)) == len(images)


def test_names_may_be_paths_and_nothing_else(
    feature_retriever: Retriever, features: NDArray[np.float32], tmp_path: Path
) -> None:
    paths = [Path(f"{k}.jpg") for k in range(len(features))]
    gallery = feature_retriever.encode_images(features, names=paths)
    assert feature_retriever.open_gallery(saved(gallery, tmp_path / "g")).documents == tuple(map(str, paths))
    with pytest.raises(InputError, match="name 1 is 7: expected a string or a path"):
        feature_retriever.encode_images(features, names=["a", 7])  # type: ignore[list-item]  # what the test is about


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_a_gallery_that_is_saved_again_can_be_opened_all_the_while(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path
) -> None:
    saved(texts, tmp_path / "gallery")
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            for gallery in (images.select([0, 1]), images, texts):
                gallery.save(tmp_path / "gallery")

    with ThreadPoolExecutor(2) as pool:
        savers = [pool.submit(save) for _ in range(2)]
        try:
            found = [feature_retriever.open_gallery(tmp_path / "gallery") for _ in range(300)]
        finally:
            stop.set()
        for saver in savers:
            saver.result()
    sizes = {("image", 2), ("image", len(images)), ("text", len(texts))}
    assert {(gallery.kind, len(gallery)) for gallery in found} <= sizes
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_a_folder_that_cannot_be_made_is_named_as_it_was_given(
    images: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(prefix: str, dir: Path) -> str:  # as tempfile calls it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{dir}/{prefix}abc")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '/proc/gallery'"):
        images.save("/proc/gallery")


def test_an_empty_folder_may_be_saved_to(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    assert len(feature_retriever.open_gallery(saved(images, tmp_path / "gallery"))) == len(images)


def test_a_failed_rename_keeps_the_older_gallery(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(texts, tmp_path / "gallery")
    with monkeypatch.context() as patched:

        def fails(self: Path, target: Path) -> Path:
            raise OSError("no rename today")

        patched.setattr(files, "_exchange", lambda one, other: False)
        patched.setattr(Path, "replace", fails)
        with pytest.raises(OSError, match="no rename"):
            images.save(tmp_path / "gallery")
    assert feature_retriever.open_gallery(tmp_path / "gallery").kind == "text"


@pytest.mark.parametrize(
    ("indices", "chosen"),
    [
        (slice(2, 5), [2, 3, 4]),
        ([7, 0, 7], [7, 0, 7]),
        (np.array([3, 1]), [3, 1]),
        (np.arange(10) % 4 == 1, [1, 5, 9]),
        ([-1], [9]),
    ],
)
def test_select_images(
    feature_retriever: Retriever, images: Gallery, features: NDArray[np.float32], indices: Any, chosen: list[int]
) -> None:
    part = images.select(indices)
    assert part.documents == tuple(f"image {index}" for index in chosen)
    np.testing.assert_array_equal(part.encoded.tensors["image.V"], images.encoded.tensors["image.V"][chosen])


@pytest.mark.parametrize("chosen", [[4], [5, 0], [3, 3, 1], [0, 1, 2, 3, 4, 5]])
def test_select_texts(feature_retriever: Retriever, images: Gallery, texts: Gallery, chosen: list[int]) -> None:
    part = texts.select(chosen)
    assert part.documents == tuple(CAPTIONS[index] for index in chosen)
    whole = feature_retriever.score_matrix(images, texts, logits=True)
    # Another block holds other texts: float32 sums run in another order.
    np.testing.assert_allclose(feature_retriever.score_matrix(images, part, logits=True), whole[:, chosen], atol=1e-5)


@pytest.mark.parametrize("chosen", [[4], [5, 0], [3, 3, 1]])
def test_selected_texts_keep_the_order_of_their_words(texts: Gallery, chosen: list[int]) -> None:
    selected = texts.select(chosen).encoded.take(slice(None))
    for name, array in texts.encoded.take(chosen).items():
        np.testing.assert_array_equal(selected[name], array)


def test_a_slice_of_images_copies_nothing(images: Gallery) -> None:
    part = images.select(slice(2, 5))
    assert np.shares_memory(part.encoded.tensors["image.V"], images.encoded.tensors["image.V"])


def test_a_part_can_be_saved(feature_retriever: Retriever, texts: Gallery, tmp_path: Path) -> None:
    opened = feature_retriever.open_gallery(saved(texts.select([4, 1]), tmp_path / "part"))
    assert opened.documents == (CAPTIONS[4], CAPTIONS[1])


def test_repr_tells_size_and_kind(texts: Gallery) -> None:
    assert repr(texts) == "<Gallery of 6 texts, 0.0 MB>"


# Joined


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_joined_images_score_as_those_encoded_at_once(
    feature_retriever: Retriever, features: NDArray[np.float32], texts: Gallery, precision: str
) -> None:
    names = [f"image {index}" for index in range(10)]
    whole = feature_retriever.encode_images(features, names, precision=precision)
    parts = [
        feature_retriever.encode_images(features[part], names[part], precision=precision)
        for part in (slice(0, 7), slice(7, 8), slice(8, 10))
    ]
    joined = Gallery.join(parts)
    assert (joined.documents, joined.precision, joined.kind) == (whole.documents, precision, "image")
    for name, array in whole.encoded.tensors.items():
        # An image encoded in another batch differs by rounding; a step of int8 where that meets the middle between two.
        np.testing.assert_allclose(
            joined.encoded.tensors[name], array, rtol=2e-3, atol=1 if array.dtype == np.int8 else 1e-5
        )
    assert [len(part) for part in parts] == [7, 1, 2]
    matches = feature_retriever.rank(CAPTIONS[0], joined, top_k=10)
    for match in matches:
        (alone,) = feature_retriever.rank(CAPTIONS[0], joined.select([match.corpus_id]))
        assert alone.document == match.document
        assert alone.logit == pytest.approx(match.logit, abs=1e-5)


def test_joined_texts_score_as_those_encoded_at_once(
    feature_retriever: Retriever, images: Gallery, texts: Gallery, tmp_path: Path
) -> None:
    joined = Gallery.join(
        [texts.select([0, 1]), feature_retriever.open_gallery(saved(texts.select([2]), tmp_path / "one"))]
    )
    assert joined.documents == tuple(CAPTIONS[:3])
    found = feature_retriever.score_matrix(images, joined, logits=True)
    np.testing.assert_allclose(found, feature_retriever.score_matrix(images, texts, logits=True)[:, :3], atol=1e-5)


def test_what_cannot_be_joined(
    feature_retriever: Retriever,
    picture_retriever: Retriever,
    features: NDArray[np.float32],
    images: Gallery,
    texts: Gallery,
) -> None:
    narrow, other = (
        feature_retriever.encode_images(features, precision="int8"),
        picture_retriever.encode_texts(CAPTIONS),
    )
    fewer = feature_retriever.encode_images(features[:, :3])
    for parts, message in (
        ([], "join takes a list of at least one gallery"),
        ([images, features], "join takes a list of at least one gallery"),
        ([images, texts], "gallery 1 has the kind text, the first has image"),
        ([images, images, narrow], "gallery 2 has the precision int8, the first has float32"),
        ([texts, other], "gallery 1 has the bundle [0-9a-f]{12}, the first has "),
        ([images, fewer], r"gallery 1 has image.V \(3, 16\) per item, the first has \(5, 16\)"),
    ):
        with pytest.raises(InputError, match=message):
            Gallery.join(parts)


def changed(folder: Path, **keys: Any) -> None:
    about = json.loads((folder / "gallery.json").read_text())
    (folder / "gallery.json").write_text(json.dumps(about | keys))


@pytest.mark.parametrize("key", ["documents", "files"])
@pytest.mark.parametrize("value", [{}, "abc", 5, [1] * 10, [{"a": 2}] * 10, [["x"]] * 10, [True] * 10, ["x"] * 11])
def test_names_of_another_kind_are_refused(
    feature_retriever: Retriever, images: Gallery, tmp_path: Path, key: str, value: Any
) -> None:
    changed(saved(images, tmp_path / "gallery"), **{key: value or 7})
    with pytest.raises(BundleError, match=r"gallery\.json is broken|items but 11 names"):
        feature_retriever.open_gallery(tmp_path / "gallery")


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_gallery_without_items_is_refused(
    feature_retriever: Retriever, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = saved(request.getfixturevalue(kind), tmp_path / "gallery")
    changed(folder, documents=[])
    for file in folder.glob("*.npy"):
        np.save(file, np.load(file)[:0])
    with pytest.raises(BundleError, match="holds no items, expected at least one; encode it again"):
        feature_retriever.open_gallery(folder)


def test_a_gallery_without_regions_is_refused(feature_retriever: Retriever, images: Gallery, tmp_path: Path) -> None:
    folder = saved(images, tmp_path / "gallery")
    np.save(folder / "image.V.npy", images.encoded.tensors["image.V"][:, :0])
    with pytest.raises(BundleError, match=r"image\.V\.npy is \(10, 0, 16\): expected 1 or more along every axis"):
        feature_retriever.open_gallery(folder)


@pytest.mark.parametrize("odd", [[-1], [0], [1 << 62, 1 << 62, 1 << 62, 1 << 62], [-(1 << 63)], [(1 << 63) - 1] * 2])
def test_lengths_that_overflow_are_refused(
    feature_retriever: Retriever, texts: Gallery, tmp_path: Path, odd: list[int]
) -> None:
    folder = saved(texts, tmp_path / "gallery")
    lengths = np.load(folder / "lengths.npy")
    lengths[: len(odd)] = odd
    np.save(folder / "lengths.npy", lengths)
    with pytest.raises(BundleError, match="disagree on the number of texts or words"):
        feature_retriever.open_gallery(folder)


def test_lengths_whose_sum_wraps_around_to_the_right_one_are_refused(
    feature_retriever: Retriever, texts: Gallery, tmp_path: Path
) -> None:
    folder = saved(texts, tmp_path / "gallery")
    lengths = np.load(folder / "lengths.npy")
    lengths[:4] += 1 << 62  # 2 ** 64 in all
    assert lengths.sum() == np.load(folder / "lengths.npy").sum()
    np.save(folder / "lengths.npy", lengths)
    with pytest.raises(BundleError, match="disagree on the number of texts or words"):
        feature_retriever.open_gallery(folder)


def test_a_gallery_of_a_name_too_long_is_refused(feature_retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="gallery"):
        feature_retriever.open_gallery(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("dtype", [">f4", "<f2"])
def test_arrays_of_another_machine_are_refused(
    feature_retriever: Retriever, images: Gallery, tmp_path: Path, dtype: str
) -> None:
    folder = saved(images, tmp_path / "gallery")
    np.save(folder / "image.V.npy", images.encoded.tensors["image.V"].astype(dtype))
    with pytest.raises(BundleError, match=r"image\.V\.npy is .*, expected float32"):
        feature_retriever.open_gallery(folder)


# Where pictures lie


@pytest.fixture
def album(picture_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, and a gallery of them that was made with relative paths."""
    folder = tmp_path / "album"
    (folder / "pictures").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 32), (60 * number, 90, 200)).save(folder / f"pictures/{number}.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "outside.png")
    monkeypatch.chdir(folder)
    paths = [*(f"pictures/{number}.png" for number in range(3)), "../outside.png"]
    picture_retriever.encode_images([*paths, Image.new("RGB", (32, 32))]).save("gallery")
    monkeypatch.chdir("/")
    return folder


def test_a_saved_gallery_names_pictures_beside_it_relative_to_its_folder(album: Path) -> None:
    about = json.loads((album / "gallery/gallery.json").read_text())
    assert about["documents"] == [*(f"pictures/{number}.png" for number in range(3)), "../outside.png", None]
    outside = str(album.parent / "outside.png")
    assert about["files"] == [*(f"pictures/{number}.png" for number in range(3)), outside, None]


def test_names_of_pictures_open_from_anywhere(picture_retriever: Retriever, album: Path) -> None:
    opened = picture_retriever.open_gallery(album / "gallery")
    matches = picture_retriever.rank("a red circle", opened, top_k=5)
    found = {match.corpus_id: match.document for match in matches}
    assert [found[number] for number in range(3)] == [str(album / f"pictures/{number}.png") for number in range(3)]
    assert (found[3], found[4]) == (str(album.parent / "outside.png"), None)
    assert all(Path(name).is_file() for name in found.values() if name)


def test_pictures_that_moved_with_their_gallery_are_found(
    picture_retriever: Retriever, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album.rename(moved := album.with_name("moved"))
    monkeypatch.chdir(moved / "gallery")
    for folder in (moved / "gallery", Path(), Path("../gallery")):
        opened = picture_retriever.open_gallery(folder)
        assert opened.documents[:3] == tuple(str(moved / f"pictures/{number}.png") for number in range(3))
    opened.select([2, 4]).save("../../part")
    part = picture_retriever.open_gallery(moved.parent / "part")
    assert part.documents == (str(moved / "pictures/2.png"), None)


def test_a_link_to_a_gallery_finds_its_pictures(picture_retriever: Retriever, album: Path) -> None:
    (link := album.parent / "link").symlink_to(album / "gallery")
    assert picture_retriever.open_gallery(link).documents[0] == str(album / "pictures/0.png")


def test_a_gallery_of_before_opens_as_before(picture_retriever: Retriever, album: Path) -> None:
    about = json.loads((album / "gallery/gallery.json").read_text())
    del about["files"]
    (album / "gallery/gallery.json").write_text(json.dumps(about))
    opened = picture_retriever.open_gallery(album / "gallery")
    assert opened.documents == tuple(about["documents"])
    assert opened.files == (None,) * 5


def test_given_names_stay(picture_retriever: Retriever, album: Path) -> None:
    gallery = picture_retriever.encode_images([album / "pictures/0.png"], names=["blue"])
    opened = picture_retriever.open_gallery(saved(gallery, album / "named"))
    assert (opened.documents, opened.files) == (("blue",), (None,))


def test_paths_of_a_stranger_are_only_text(picture_retriever: Retriever, album: Path) -> None:
    files = ["../../../etc/passwd", "/dev/zero", "x" * 5000, "a\0b", None]
    changed(album / "gallery", files=files)
    opened = picture_retriever.open_gallery(album / "gallery")
    assert opened.documents[1] == "/dev/zero"
    assert len(picture_retriever.rank("a red circle", opened, top_k=5)) == 5


# The same picture twice


def test_the_same_file_is_not_joined_twice(
    picture_retriever: Retriever, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = picture_retriever.open_gallery(album / "gallery")
    monkeypatch.chdir(album / "pictures")
    new = picture_retriever.encode_images(["1.png"])
    other = picture_retriever.encode_images([Image.new("RGB", (32, 32), "red")], names=["red"])
    joined = Gallery.join([old.select([0, 4]), new, other])
    assert joined.documents == (str(album / "pictures/0.png"), None, "1.png", "red")
    assert joined.files == (str(album / "pictures/0.png"), None, str(album / "pictures/1.png"), None)
    with pytest.raises(InputError, match=r"galleries 0 and 2 both hold .*pictures/1\.png: leave it out of one of them"):
        Gallery.join([old, other, new])


def test_a_name_is_joined_twice_only_for_different_pictures(
    feature_retriever: Retriever, features: NDArray[np.float32], images: Gallery
) -> None:
    again = feature_retriever.encode_images(features[:2], names=["image 5", "image 6"])
    assert len(Gallery.join([images, again])) == 12
    with pytest.raises(InputError, match="galleries 0 and 1 both hold image 3"):
        Gallery.join([images, images.select([3])])


def test_pictures_without_names_and_texts_may_repeat(
    feature_retriever: Retriever, features: NDArray[np.float32], texts: Gallery
) -> None:
    nameless = feature_retriever.encode_images(features)
    assert len(Gallery.join([nameless, nameless])) == 20
    assert len(Gallery.join([texts, texts])) == 2 * len(texts)


def test_repeated_names_are_hashed_once_each(images: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pictures of one name are not compared in pairs."""
    hashed: list[int] = []
    before = gallery_module._digest
    monkeypatch.setattr(gallery_module, "_digest", lambda part, item: hashed.append(item) or before(part, item))
    parts = [Gallery(images.encoded.select(chosen), ["dog"] * 3, images._bundle) for chosen in ([0, 1, 2], [3, 4, 5])]
    assert len(Gallery.join(parts)) == len(hashed) == 6
    parts[1] = Gallery(images.encoded.select([5, 4, 1]), ["dog"] * 3, images._bundle)
    with pytest.raises(InputError, match="galleries 0 and 1 both hold dog"):
        Gallery.join(parts)


@pytest.mark.parametrize("folder", [None, 5, "a\0b"])
def test_what_is_no_folder_is_refused(images: Gallery, feature_retriever: Retriever, folder: Any) -> None:
    with pytest.raises(InputError, match="the gallery's folder is"):
        images.save(folder)
    with pytest.raises(BundleError, match="the gallery's folder is"):
        feature_retriever.open_gallery(folder)
    with pytest.raises(InputError, match="join takes a list of at least one gallery"):
        Gallery.join(folder)  # which is no list of galleries either
