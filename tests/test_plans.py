"""Plans on disk: what decides whether an engine fits, the shapes it takes, and that a hostile record is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from camp_sdk import BackendError, Bundle, BundleError, InputError
from camp_sdk.runtime.contract import GraphSpec, TensorSpec
from camp_sdk.runtime.engines.profiles import Limits, Profile, profile_of
from camp_sdk.runtime.lowered import LoweredGraphs
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.tensorrt.plans import (
    RECORD_BYTES_LIMIT,
    Here,
    engine_files,
    engine_key,
    find_plan,
    graph_of,
    read_record,
    read_records,
)
from camp_sdk.runtime.tokenizer import Tokenizer
from tests.helpers.engines import ORIN, PLAN, PROFILE, write_engine

RTX = Here("tensorrt_rtx", "1.7.1.116", None)


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle(bundle_copy)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "engine.json").read_text())
    change(raw)
    (folder / "engine.json").write_text(json.dumps(raw))


# The key


@pytest.mark.parametrize(
    "changed",
    [
        {"here": replace(ORIN, library="tensorrt_rtx")},
        {"here": replace(ORIN, version="10.3.1")},
        {"here": replace(ORIN, compute_capability="8.9")},
        {"graph_sha256": "b" * 64},
        {"profile": {"features": ((1, 1, 12), (256, 36, 12), (256, 99, 12))}},
        {"profile": {"pixels": PROFILE["features"]}},
        {"precision": "float16"},
    ],
    ids=["library", "version", "architecture", "graph", "sizes", "inputs", "precision"],
)
def test_every_ingredient_changes_the_key(changed: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"here": ORIN, "graph_sha256": "a" * 64, "profile": PROFILE, "precision": "float32"}
    assert engine_key(**parts | changed) != engine_key(**parts)


def test_a_key_is_a_short_name_that_depends_on_nothing_else() -> None:
    key = engine_key(ORIN, "a" * 64, PROFILE, "float32")
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    assert key == engine_key(replace(ORIN, driver="CUDA 13.0"), "a" * 64, dict(PROFILE), "float32")


@pytest.mark.parametrize(
    ("library", "found", "target"),
    [
        ("tensorrt", "8.7", "8.7"),
        ("tensorrt_rtx", None, None),
        ("tensorrt_rtx", "8.9", None),
        ("tensorrt_rtx", "12.0", None),
        ("tensorrt_rtx", "7.5", "7.5"),
    ],
)
def test_rtx_engines_are_portable_but_for_old_gpus(library: str, found: str | None, target: str | None) -> None:
    assert Here(library, "1", found).target == target


# The profile


def test_every_axis_of_the_contract_gets_its_range(bundle: Bundle) -> None:
    manifest = bundle.manifest
    profiles = {name: profile_of(manifest.graphs[name], manifest, Limits()) for name in ("image", "text", "scorer")}
    words = manifest.max_words + 2  # and both markers
    assert profiles["image"] == {"features": ((1, 1, 12), (128, 36, 12), (128, 100, 12))}
    assert profiles["text"] == {"tokens": ((1, 1), (64, 16), (64, words)), "lengths": ((1,), (64,), (64,))}
    assert profiles["scorer"]["image.V"] == ((1, 1, 16), (128, 36, 16), (128, 100, 16))
    assert profiles["scorer"]["text.mask"] == ((1, 1), (2, 16), (8, words))
    assert profiles["scorer"].keys() == {spec.name for spec in manifest.graphs["scorer"].inputs}


def test_the_longest_caption_fits_the_default_profile(bundle: Bundle) -> None:
    tokens = Tokenizer(bundle.file("tokenizer.json").read()).encode(["circle " * 80])
    profile = profile_of(bundle.manifest.graphs["text"], bundle.manifest, Limits())
    assert profile["tokens"][2][1] == tokens.ids.shape[1] == tokens.lengths.max()


def test_the_regions_of_pictures_are_those_of_the_grid(picture_bundle: Path) -> None:
    manifest = Bundle(picture_bundle).manifest
    assert profile_of(manifest.graphs["image"], manifest, Limits())["features"][0] == (1, 36, 12)
    assert profile_of(manifest.graphs["image"], manifest, Limits())["features"][2] == (128, 36, 12)
    assert profile_of(manifest.graphs["vision"], manifest, Limits(max_images=8))["pixels"] == (
        (1, 3, 96, 96),
        (8, 3, 96, 96),
        (8, 3, 96, 96),
    )
    with pytest.raises(InputError, match="max_regions is 4: every picture of this bundle has 36 regions"):
        profile_of(manifest.graphs["image"], manifest, Limits(max_regions=4))


def test_limits_bound_the_expected_sizes_too(bundle: Bundle) -> None:
    limits, manifest = Limits(max_images=3, max_texts=2, max_words=5, max_regions=7), bundle.manifest
    assert profile_of(manifest.graphs["image"], manifest, limits) == {"features": ((1, 1, 12), (3, 7, 12), (3, 7, 12))}
    assert profile_of(manifest.graphs["text"], manifest, limits)["tokens"] == ((1, 1), (64, 5), (64, 5))
    assert profile_of(manifest.graphs["scorer"], manifest, limits)["text.mask"] == ((1, 1), (1, 5), (2, 5))


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8", 1 << 31])
def test_a_limit_that_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"max_images is .*: expected a whole number from 1"):
        Limits(max_images=value)


@pytest.mark.parametrize("size", ["X", 0, -3, 1.5, True, None, 1 << 40])
def test_an_axis_of_no_size_is_refused(bundle: Bundle, size: Any) -> None:
    spec = GraphSpec("image.onnx", (TensorSpec("features", "float32", ("I", size)),), ())
    with pytest.raises(BundleError, match="features has an axis"):
        profile_of(spec, bundle.manifest, Limits())


def test_the_regions_of_pictures_that_they_do_not_tile_fit_the_engines(picture_bundle: Path) -> None:
    """Those of a vision transformer with a class token: one more than there are patches, and more than usual."""
    manifest = Bundle(picture_bundle).manifest
    assert manifest.pixels is not None
    (makes,) = manifest.graphs["vision"].outputs
    vision = replace(manifest.graphs["vision"], outputs=(replace(makes, shape=("B", 197, makes.shape[2])),))
    pixels = replace(manifest.pixels, grid=(0, 0))
    changed = replace(manifest, graphs=manifest.graphs | {"vision": vision}, pixels=pixels)
    low, usual, high = profile_of(changed.graphs["image"], changed, Limits())["features"]
    assert (low[1], usual[1], high[1]) == (1, 197, 197)


@pytest.mark.parametrize("changed", [{"max_words": 0}, {"max_words": 1 << 40}, {"grid": (0, 6)}, {"grid": (-1, 6)}])
def test_a_manifest_of_impossible_sizes_is_refused(bundle: Bundle, changed: dict[str, Any]) -> None:
    pixels = PixelSpec(96, 96, (0, 0, 0), (1, 1, 1), changed.get("grid", (6, 6)))
    manifest = replace(bundle.manifest, pixels=pixels, max_words=changed.get("max_words", 9))
    with pytest.raises(BundleError, match=r"manifest.json has max_words"):
        profile_of(manifest.graphs["image"], manifest, Limits())


# Finding the plan that fits


def test_a_plan_that_fits_is_found(bundle: Bundle) -> None:
    folder = write_engine(bundle)
    plan, record = find_plan(bundle, "image", "float32", replace(ORIN, driver="CUDA 13.0"))
    assert plan.path == folder / "engine.plan"
    assert (record.graph, record.profile, record.build_s) == ("image", PROFILE, 1.5)


def test_a_record_reads_as_it_was_written(bundle: Bundle) -> None:
    folder = write_engine(bundle, RTX)
    record = read_record(folder)
    assert (record.compute_capability, record.driver, record.key) == (None, None, folder.name)
    assert (folder / "engine.json").read_text() == record.as_json()


def test_of_several_that_fit_the_last_built_is_taken(bundle: Bundle) -> None:
    write_engine(bundle, built_at=5.0)
    other: Profile = {"features": ((1, 1, 12), (8, 36, 12), (8, 100, 12))}
    newest = write_engine(bundle, built_at=9.0, profile=other)
    assert find_plan(bundle, "image", "float32", ORIN)[0].path.parent == newest


COMMAND = "build it with: camp build .* --backend tensorrt --precision float32 --graph image"


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        ({"here": replace(ORIN, compute_capability="8.9")}, "for GPUs of compute capability 8.9, this machine has 8.7"),
        ({"here": replace(ORIN, version="10.3.1")}, r"by version 10.3.1, this machine has version 10.3.0"),
        ({"graph_sha256": "b" * 64}, r"from another graph, of SHA-256 bbbbbbbbbbbb..., the bundle's has"),
        ({"graph": "text"}, "none was built"),
        ({"precision": "float16"}, "none was built"),
        ({"here": RTX}, "none was built"),
    ],
    ids=["architecture", "version", "graph", "other graph", "precision", "library"],
)
def test_what_differs_is_told_in_one_line(bundle: Bundle, built: dict[str, Any], reason: str) -> None:
    write_engine(bundle, **built)
    with pytest.raises(BackendError, match=f"{reason}.*; {COMMAND}") as caught:
        find_plan(bundle, "image", "float32", ORIN)
    assert "\n" not in str(caught.value)


def test_without_engines_the_command_is_told(bundle: Bundle) -> None:
    with pytest.raises(
        BackendError, match=f"has no tensorrt engine of the float32 image graph for here: none was built; {COMMAND}"
    ):
        find_plan(bundle, "image", "float32", ORIN)


@pytest.mark.parametrize(
    ("found", "fits"), [("8.0", True), ("8.9", True), ("12.0", True), ("7.5", False), (None, False)]
)
def test_a_portable_plan_fits_every_gpu_since_ampere(bundle: Bundle, found: str | None, fits: bool) -> None:
    write_engine(bundle, RTX)
    here = replace(RTX, compute_capability=found)
    if fits:
        assert find_plan(bundle, "image", "float32", here)[1].compute_capability is None
    else:
        with pytest.raises(BackendError, match=f"8.0 and later, this machine has {found or 'none'}"):
            find_plan(bundle, "image", "float32", here)


def test_a_graph_that_a_precision_does_not_have_is_the_float32_one(bundle: Bundle) -> None:
    image = bundle.manifest.graphs["image"]
    lowered = LoweredGraphs({"scorer": replace(image, file="fp16/scorer.onnx")})
    bundle.manifest = replace(bundle.manifest, precisions={"float16": lowered})
    write_engine(bundle)
    assert graph_of(bundle, "scorer", "float16")[1] == "float16"
    assert find_plan(bundle, "image", "float16", ORIN)[1].precision == "float32"
    with pytest.raises(BundleError, match="this bundle has no bfloat16 graphs"):
        find_plan(bundle, "image", "bfloat16", ORIN)
    with pytest.raises(BundleError, match="has no vision graph; it has"):
        find_plan(bundle, "vision", "float32", ORIN)


# What is broken or hostile


def test_an_altered_plan_is_refused(bundle: Bundle) -> None:
    plan = write_engine(bundle) / "engine.plan"
    plan.write_bytes(b"b plan")
    with pytest.raises(BackendError, match="was altered"):
        find_plan(bundle, "image", "float32", ORIN)
    plan.write_bytes(PLAN + b"!")
    with pytest.raises(BackendError, match="has 7 bytes, its record says 6"):
        find_plan(bundle, "image", "float32", ORIN)
    plan.unlink()
    with pytest.raises(BackendError, match=r"engine.plan is missing"):
        find_plan(bundle, "image", "float32", ORIN)


def test_a_plan_outside_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_engine(bundle) / "engine.plan"
    plan.rename(tmp_path / "elsewhere.plan")
    plan.symlink_to(tmp_path / "elsewhere.plan")
    with pytest.raises(BackendError, match="not a file of the bundle"):
        find_plan(bundle, "image", "float32", ORIN)


def refused(bundle: Bundle) -> str:
    """Why the only record of a bundle was left out."""
    records, (reason,) = read_records(bundle.folder)
    assert records == []
    with pytest.raises(BackendError, match="none was built, or its record is broken"):
        find_plan(bundle, "image", "float32", ORIN)
    return reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 3),
        ("library", ["tensorrt"]),
        ("library_version", "1" * 1000),
        ("compute_capability", 8.7),
        ("graph_sha256", "abc"),
        ("plan_bytes", "6"),
        ("plan_bytes", True),
        ("plan_bytes", -6),
        ("low_share", float("nan")),
        ("build_s", -1),
        ("build_s", 10**400),
        ("profile", []),
        ("profile", {"features": [1, 2, 3]}),
        ("profile", {"features": {"min": [1], "opt": [2], "max": [1]}}),
        ("profile", {"features": {"min": [1], "opt": [2, 2], "max": [3]}}),
        ("profile", {"features": {"min": [1], "opt": [2.5], "max": [3]}}),
        ("profile", {"features": {"min": "1", "opt": "2", "max": "3"}}),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(bundle: Bundle, name: str, value: Any) -> None:
    rewrite(write_engine(bundle), lambda raw: raw.update({name: value}))
    assert "is not the record of an engine" in refused(bundle)


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"others": ((1, 1, 12), (8, 36, 12), (16, 36, 12))},
        {"features": ((1, 12), (8, 12), (16, 12))},
        {"features": ((1, 1, 1, 12), (8, 36, 1, 12), (16, 36, 1, 12))},
        {"features": ((1, 1, 11), (8, 36, 11), (16, 36, 11))},
        {"features": ((1 << 30, 1, 12), (1 << 31, 36, 12), (1 << 31, 36, 12))},
    ],
)
def test_sizes_that_a_graph_does_not_have_are_refused(bundle: Bundle, profile: Any) -> None:
    """A run would fail on them, or pad two images to a billion."""
    write_engine(bundle, profile=profile)
    with pytest.raises(BackendError, match=r"none was built, or its record is broken: "):
        find_plan(bundle, "image", "float32", ORIN)


@pytest.mark.parametrize("name", ["format", "library", "graph", "profile", "plan_sha256", "built_at"])
def test_a_missing_value_is_refused(bundle: Bundle, name: str) -> None:
    rewrite(write_engine(bundle), lambda raw: raw.pop(name))
    assert f"KeyError: '{name}'" in refused(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "\ufeff{}", "[" * 100_000, "9" * 100_000])
def test_what_is_no_record_is_refused(bundle: Bundle, text: str) -> None:
    (write_engine(bundle) / "engine.json").write_text(text)
    assert "is not the record of an engine" in refused(bundle)


def test_a_record_that_is_no_text_is_refused(bundle: Bundle) -> None:
    (write_engine(bundle) / "engine.json").write_bytes(b"\xff\xfe\xfa")
    assert "is not the record of an engine" in refused(bundle)


def test_a_huge_record_is_not_read(bundle: Bundle) -> None:
    with (write_engine(bundle) / "engine.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert f"more than {RECORD_BYTES_LIMIT} bytes" in refused(bundle)


def test_a_record_made_to_fit_is_refused(bundle: Bundle) -> None:
    folder = write_engine(bundle, replace(ORIN, compute_capability="8.9"))
    rewrite(folder, lambda raw: raw.update(compute_capability="8.7"))
    assert "was altered: it belongs to a folder named" in refused(bundle)


def test_a_record_outside_the_bundle_is_not_read(bundle: Bundle, tmp_path: Path) -> None:
    path = write_engine(bundle) / "engine.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert "not a file of the bundle" in refused(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_record_that_is_a_pipe_is_not_waited_for(bundle: Bundle) -> None:
    path = write_engine(bundle) / "engine.json"
    path.unlink()
    os.mkfifo(path)
    assert "not a file of the bundle" in refused(bundle)


def test_engines_outside_the_bundle_are_not_seen(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_engine(bundle)
    shutil.move(folder, tmp_path / folder.name)
    folder.symlink_to(tmp_path / folder.name)
    assert read_records(bundle.folder) == ([], [])
    shutil.rmtree(bundle.folder / "engines")
    (tmp_path / "elsewhere" / folder.name).mkdir(parents=True)
    (bundle.folder / "engines").symlink_to(tmp_path / "elsewhere")
    assert read_records(bundle.folder) == ([], [])


def test_a_broken_record_does_not_hide_a_sound_one(bundle: Bundle) -> None:
    sound = write_engine(bundle)
    (write_engine(bundle, replace(ORIN, version="9.9")) / "engine.json").write_text("{")
    assert find_plan(bundle, "image", "float32", ORIN)[0].path.parent == sound
    assert [folder for folder, _ in read_records(bundle.folder)[0]] == [sound]


def test_the_files_of_engines_are_known(bundle: Bundle) -> None:
    key = write_engine(bundle).name
    assert engine_files(bundle.folder) == [f"engines/{key}/engine.plan", f"engines/{key}/engine.json"]
