"""The `camp` command: the answer on standard output, one line on standard error when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import InputError, Match, Retriever, Split, evaluate, evaluate_matrix, load_split, progress_bar
from camp_sdk.evaluation import protocol_folds
from camp_sdk.terminal import run_command
from tests.helpers.command import Camp, Result
from tests.helpers.tiny import CAPTIONS

QUERY = "a small red circle"


@pytest.fixture
def precomputed(tmp_path: Path, features: NDArray[np.float32]) -> Path:
    np.save(tmp_path / "test_ims.npy", features)
    (tmp_path / "test_caps.txt").write_text("\n".join([*CAPTIONS, *CAPTIONS[:4]]) + "\n", encoding="utf-8")
    return tmp_path


def pictures_named(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for index, name in enumerate(names):
        Image.effect_mandelbrot((40, 40), (-2, -1, 1, 1), 5 + 20 * index).save(folder / name)
    return folder


def squeezed(table: str) -> str:
    """A table's text without its frame and folds."""
    return "".join(letter for letter in table if letter not in "│ \n")


def test_version(camp: Camp) -> None:
    assert camp("--version") == Result(0, f"{version('camp-sdk')}\n", "")


def test_help_names_the_commands(camp: Camp) -> None:
    result = camp("--help")
    assert result.code == 0
    for command in ("eval", "encode", "rank", "build", "doctor"):
        assert command in result.out


# camp eval


def test_eval_json(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    result = camp("eval", picture_bundle, "--data", scenes, "--json")
    answer = json.loads(result.out)
    assert result.code == 0
    assert list(answer)[:3] == ["text_to_image", "image_to_text", "rsum"]
    for direction in ("text_to_image", "image_to_text"):
        assert set(answer[direction]) == {"r1", "r5", "r10", "median_rank"}
        assert all(0 <= answer[direction][recall] <= 100 for recall in ("r1", "r5", "r10"))
    assert (answer["images"], answer["texts"], answer["folds"], answer["split"]) == (8, 40, 1, "test")
    assert set(answer["global_vectors"]) == {"text_to_image", "image_to_text", "rsum"}


def test_eval_json_is_what_python_says(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, scenes: Path
) -> None:
    answer = json.loads(camp("eval", picture_bundle, "--data", scenes, "--backend", "onnxruntime", "--json").out)
    expected = evaluate(picture_retriever, load_split(scenes, "test")).as_dict()
    assert answer == expected | {"split": "test", "backend": "onnxruntime", "precision": "float32"}


def test_eval_of_features(camp: Camp, feature_bundle: Path, precomputed: Path) -> None:
    answer = json.loads(camp("eval", feature_bundle, "--data", precomputed, "--json").out)
    assert (answer["images"], answer["texts"]) == (10, 10)


def test_eval_of_another_split(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    answer = json.loads(camp("eval", picture_bundle, "--data", scenes, "--split", "dev", "--json").out)
    assert (answer["split"], answer["images"]) == ("dev", 6)


def test_folds_are_named_and_averaged(
    camp: Camp, feature_bundle: Path, feature_retriever: Retriever, precomputed: Path
) -> None:
    result = camp("eval", feature_bundle, "--data", precomputed, "--folds", 5, "--backend", "onnxruntime", "--json")
    answer = json.loads(result.out)
    split = load_split(precomputed, "test")
    parts = [(split.images[k : k + 2], split.captions[k : k + 2]) for k in range(0, 10, 2)]
    folds = [evaluate_matrix(feature_retriever.score_matrix(*part, logits=True), np.arange(2)) for part in parts]
    assert (answer["folds"], answer["protocol"]) == (5, "mean over 5 folds of 2 images")
    assert answer["text_to_image"]["r1"] == sum(fold.text_to_image.r1 for fold in folds) / 5
    assert answer["image_to_text"]["median_rank"] == pytest.approx(  # a mean of five may round in its last bit
        sum(fold.image_to_text.median_rank for fold in folds) / 5, rel=1e-12
    )


def test_the_table_of_eval(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    result = camp("eval", picture_bundle, "--data", scenes)
    answer = json.loads(camp("eval", picture_bundle, "--data", scenes, "--json").out)
    assert result.code == 0
    for shown in ("R@1", "R@5", "R@10", "median", "rsum", "8 images x 40 captions", f"{answer['rsum']:.1f}"):
        assert shown in result.out
    assert f"{answer['global_vectors']['rsum']:.1f}" in result.out


def test_eval_notices_an_output_that_cannot_be_written_before_it_begins(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = camp("eval", picture_bundle, "--data", scenes, "--output", tmp_path / "file" / "x.json")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: [Errno 20] Not a directory: '{tmp_path / 'file' / 'x.json'}'\n"  # and no progress


def test_eval_follows_a_link_to_where_its_results_go(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path
) -> None:
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "first.json")
    result = camp("eval", picture_bundle, "--data", scenes, "--output", link, "--json")
    assert (result.code, link.is_symlink()) == (0, True)
    assert (tmp_path / "first.json").read_text() == result.out


# camp encode


@pytest.mark.parametrize("kept", ["float32", "int8"])
def test_a_gallery_is_encoded_once_and_ranked_many_times(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, scenes: Path, tmp_path: Path, kept: str
) -> None:
    options = ["--images", scenes / "test", "--output", tmp_path / "gallery", "--gallery-precision", kept]
    encoded = json.loads(camp("encode", picture_bundle, *options, "--backend", "onnxruntime", "--json").out)
    opened = picture_retriever.open_gallery(tmp_path / "gallery")
    summary = {"gallery": str(tmp_path / "gallery"), "images": 8, "bytes": opened.nbytes, "precision": kept}
    passed_over = [{"name": "metadata.jsonl", "reason": "it is in no format that Pillow knows"}]
    assert encoded == summary | {"skipped": [], "passed_over": passed_over}
    for query in (QUERY, "a large blue star"):
        asked = ["--gallery", tmp_path / "gallery", "--query", query, "--backend", "onnxruntime", "--json"]
        found = json.loads(camp("rank", picture_bundle, *asked).out)
        matches = [match_as_dict(match) for match in picture_retriever.rank(query, opened)]
        assert found == {
            "rankings": [{"query": query, "unknown_words": [], "shortlist": None, "matches": matches}],
            "skipped": [],
            "passed_over": [],
        }


def match_as_dict(match: Match) -> dict[str, Any]:
    return {name: getattr(match, name) for name in ("rank", "document", "score", "logit", "corpus_id")}


def test_encode_tells_what_it_wrote(camp: Camp, feature_bundle: Path, precomputed: Path, tmp_path: Path) -> None:
    options = ["--images", precomputed / "test_ims.npy", "--output", tmp_path / "gallery"]
    assert camp("encode", feature_bundle, *options).out.startswith(
        f"{tmp_path / 'gallery'}: 10 images, 0.0 MB, float32"
    )


def test_encode_notices_an_output_that_cannot_be_written_before_it_begins(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = camp("encode", picture_bundle, "--images", scenes / "test", "--output", tmp_path / "file" / "gallery")
    assert result.err == f"error: [Errno 20] Not a directory: '{tmp_path / 'file' / 'gallery'}'\n"


@pytest.mark.parametrize("taken", ["pictures", ""])
def test_encode_notices_an_output_that_is_no_gallery_before_it_begins(
    camp: Camp, picture_bundle: Path, tmp_path: Path, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pictures_named(tmp_path / "pictures", "one.png")
    result = camp("encode", picture_bundle, "--images", folder, "--output", taken)
    assert result.err.startswith(f"error: {taken or '.'} exists and is not a gallery")  # and no progress before it


# camp rank


def test_several_queries_are_answered_each(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, scenes: Path
) -> None:
    options = ["--images", scenes / "test", "--query", QUERY, "--query", "a blue star", "--backend", "onnxruntime"]
    answer = json.loads(camp("rank", picture_bundle, *options, "--json").out)
    rankings = picture_retriever.rank([QUERY, "a blue star"], sorted((scenes / "test").glob("*.png")))
    assert [one["query"] for one in answer["rankings"]] == [QUERY, "a blue star"]
    assert [one["matches"] for one in answer["rankings"]] == [[match_as_dict(m) for m in r] for r in rankings]
    table = camp("rank", picture_bundle, *options).out
    assert table.index(QUERY) < table.index("a blue star")


@pytest.mark.parametrize("given", [[], ["--images", "x", "--gallery", "y"]])
def test_rank_takes_images_or_a_gallery(camp: Camp, picture_bundle: Path, given: list[str]) -> None:
    result = camp("rank", picture_bundle, "--query", QUERY, *given)
    assert (result.code, result.err) == (1, "error: give either --images or --gallery\n")


def test_a_shortlist_shorter_than_the_answer_is_refused_first(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    result = camp("rank", picture_bundle, "--images", scenes / "test", "--query", QUERY, "--shortlist", 2)
    assert (result.code, result.err) == (
        1,
        "error: --shortlist is 2: expected a whole number, at least --top-k = 5, or 0 to score every item\n",
    )


def test_a_shortlist_without_global_vectors_is_refused_first(
    camp: Camp, released_bundle: Callable[[str], Path], precomputed: Path
) -> None:
    bundle = released_bundle("gate_fusion")
    reason = "error: --shortlist: this bundle has no global vectors to make one with"
    camp("--version")  # what the export of the bundle printed is read with it
    images = ["--images", precomputed / "test_ims.npy", "--query", QUERY]
    assert camp("rank", bundle, *images, "--shortlist", 9).err.startswith(reason)
    result = camp("eval", bundle, "--data", precomputed, "--shortlist", 9)
    assert reason in result.err
    assert "100%" not in result.err


def test_rank_json_is_in_order(camp: Camp, picture_bundle: Path, scenes: Path, picture_retriever: Retriever) -> None:
    options = ["--images", scenes / "test", "--query", QUERY, "--top-k", 3, "--backend", "onnxruntime"]
    result = camp("rank", picture_bundle, *options, "--json")
    answer = json.loads(result.out)
    paths = sorted((scenes / "test").glob("*.png"))
    expected = picture_retriever.rank(QUERY, paths, 3)
    assert list(answer) == ["rankings", "skipped", "passed_over"]
    ((query, unknown, shortlist, matches),) = (one.values() for one in answer["rankings"])
    assert (query, unknown, shortlist, answer["skipped"]) == (QUERY, [], None, [])
    assert [match["rank"] for match in matches] == [1, 2, 3]
    assert [match["document"] for match in matches] == [match.document for match in expected]
    assert [match["logit"] for match in matches] == sorted((m.logit for m in expected), reverse=True)
    assert [set(match) for match in matches] == [{"rank", "document", "score", "logit", "corpus_id"}] * 3


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (100, 8)])
def test_rank_top_k(camp: Camp, picture_bundle: Path, scenes: Path, top_k: int, count: int) -> None:
    result = camp("rank", picture_bundle, "--images", scenes / "test", "--query", QUERY, "--top-k", top_k, "--json")
    assert len(json.loads(result.out)["rankings"][0]["matches"]) == count


def test_the_table_of_rank(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "one.png", "two.png")
    result = camp("rank", picture_bundle, "--images", folder, "--query", QUERY)
    assert result.code == 0
    for shown in (QUERY, "rank", "score", str(folder / "one.png"), str(folder / "two.png")):
        assert shown in result.out


def test_a_narrow_table_still_names_the_pictures(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / ("long" * 30), "one.png", "two.png")
    table = squeezed(camp("rank", picture_bundle, "--images", folder, "--query", QUERY, columns=60).out)
    assert "one.png" in table
    assert "two.png" in table


@pytest.mark.parametrize("name", ["holiday[red].png", "[1].png", "it[bold].png"])
def test_file_names_are_shown_as_they_are(camp: Camp, picture_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = pictures_named(tmp_path / "pictures", name)
    assert name in camp("rank", picture_bundle, "--images", folder, "--query", QUERY).out


def test_file_names_and_queries_do_not_steer_the_terminal(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "c\x1b[31m.png")
    out = camp("rank", picture_bundle, "--images", folder, "--query", "a red\x1b]0; circle").out
    assert "\x1b" not in out
    assert r"c\x1b[31m.png" in out
    (folder / "c\x1b[31m.png").write_bytes(b"broken")
    err = camp("rank", picture_bundle, "--images", folder, "--query", QUERY).err
    assert r"c\x1b[31m.png cannot be read" in err.splitlines()[-1]


@pytest.mark.parametrize("query", ["a red [/b] circle", "a red [bold] circle"])
def test_queries_are_shown_as_they_are(camp: Camp, picture_bundle: Path, tmp_path: Path, query: str) -> None:
    folder = pictures_named(tmp_path / "pictures", "one.png")
    assert query in camp("rank", picture_bundle, "--images", folder, "--query", query).out


def with_a_broken_one(folder: Path) -> Path:
    pictures_named(folder, "one.png", "two.png")
    (folder / "broken.jpg").write_bytes(b"broken")
    return folder


def test_rank_stops_at_a_broken_picture(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    result = camp("rank", picture_bundle, "--images", with_a_broken_one(tmp_path / "pictures"), "--query", QUERY)
    assert (result.code, result.out) == (1, "")
    assert "broken.jpg cannot be read as a picture" in result.err.splitlines()[-1]
    assert result.err.endswith("; --skip-broken leaves out such pictures\n")


def test_rank_skips_broken_pictures_if_told(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = with_a_broken_one(tmp_path / "pictures")
    result = camp("rank", picture_bundle, "--images", folder, "--query", QUERY, "--skip-broken", "--json")
    answer = json.loads(result.out)
    documents = {match["document"] for match in answer["rankings"][0]["matches"]}
    assert documents == {str(folder / "one.png"), str(folder / "two.png")}
    reason = "cannot be read as a picture: it is in no format that Pillow knows"
    assert answer["skipped"] == [{"index": 0, "name": str(folder / "broken.jpg"), "reason": reason}]


@pytest.mark.parametrize("command", ["rank", "encode"])
def test_what_is_no_picture_is_passed_over_in_one_line(
    camp: Camp, picture_bundle: Path, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "pictures"
    pictures_named(folder, "one.png")
    (folder / "one.png").rename(folder / "one")  # found by its content
    (folder / "a\x1b\nb.txt").write_text("text")
    (folder / "sub").mkdir()
    (folder / ".hidden").write_text("text")
    more = ["--query", QUERY] if command == "rank" else ["--output", tmp_path / "gallery"]
    result = camp(command, picture_bundle, "--images", folder, *more, "--json")
    passed_over = [
        {"name": "a\x1b\nb.txt", "reason": "it is in no format that Pillow knows"},
        {"name": "sub", "reason": "a folder: pictures in it are not read"},
    ]
    answer = json.loads(result.out)
    assert (result.code, answer["skipped"], answer["passed_over"]) == (0, [], passed_over)
    assert result.err.splitlines()[0] == (
        "2 passed over: a\\x1b\\nb.txt (it is in no format that Pillow knows); "
        "sub (a folder: pictures in it are not read)"
    )


def test_rank_names_what_it_skips_on_standard_error(picture_bundle: Path, tmp_path: Path) -> None:
    folder = with_a_broken_one(tmp_path / "pictures")
    command = [
        sys.executable,
        "-m",
        "camp_sdk.commands.app",
        "rank",
        picture_bundle,
        "--images",
        folder,
        "--query",
        QUERY,
    ]
    done = subprocess.run([*command, "--skip-broken"], capture_output=True, text=True, check=True)
    assert f"left out {folder / 'broken.jpg'}: cannot be read as a picture" in done.stderr
    assert "broken.jpg" not in done.stdout


def test_rank_takes_a_limit_of_megapixels(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "one.png")
    options = ["--images", folder, "--query", QUERY, "--max-megapixels"]
    assert "one.png has 40 x 40 pixels: at most 0.0015 megapixels" in camp("rank", picture_bundle, *options, 0.0015).err
    assert camp("rank", picture_bundle, *options, 0.0016).code == 0
    assert "expected a number above 0" in camp("rank", picture_bundle, *options, 0).err


@pytest.mark.parametrize("total", [3, None])
def test_a_progress_bar_of_a_known_or_unknown_length(total: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("encoding images", total) as advance:
        for _ in range(3):
            advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "encoding images" in err
    assert ("100%" in err) == (total == 3)


# Standard output is the answer, standard error the rest


@pytest.mark.parametrize("command", ["eval", "rank"])
def test_progress_goes_to_standard_error(camp: Camp, picture_bundle: Path, scenes: Path, command: str) -> None:
    options = {"eval": ["--data", scenes], "rank": ["--images", scenes / "test", "--query", QUERY]}[command]
    result = camp(command, picture_bundle, *options, "--json")
    json.loads(result.out)
    assert {"eval": "scoring pairs", "rank": "encoding images"}[command] in result.err


def failing(name: str, bundle: Path, scenes: Path, tmp_path: Path) -> tuple[list[Any], str]:
    """A command that cannot succeed, and what its error must name."""
    (tmp_path / "empty").mkdir()
    rank = ["rank", bundle, "--images", scenes / "test", "--query"]
    return {
        "no bundle": (
            ["rank", tmp_path / "no", "--images", scenes / "test", "--query", QUERY],
            "manifest.json not found",
        ),
        "no folder": (["rank", bundle, "--images", tmp_path / "no", "--query", QUERY], "is not a folder"),
        "no pictures": (["rank", bundle, "--images", tmp_path / "empty", "--query", QUERY], "holds no pictures"),
        "unknown backend": ([*rank, QUERY, "--backend", "abacus"], "backend 'abacus': expected auto"),
        "no split": (["eval", bundle, "--data", scenes, "--split", "other"], "has no split 'other'"),
        "no data": (["eval", bundle, "--data", tmp_path / "empty"], "has no split 'test'"),
    }[name]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", ["no bundle", "no folder", "no pictures", "unknown backend", "no split", "no data"])
def test_an_error_is_one_line(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path, name: str, as_json: bool
) -> None:
    arguments, message = failing(name, picture_bundle, scenes, tmp_path)
    result = camp(*arguments, *(["--json"] if as_json else []))
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_error_of_a_file_is_one_line(camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = camp("eval", picture_bundle, "--data", scenes, "--split", "dev", "--output", tmp_path / "file/x.json")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.err


def test_an_output_that_is_a_folder_is_left_alone(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/best.ckpt").write_text("precious")
    result = camp("eval", picture_bundle, "--data", scenes, "--output", tmp_path / "runs")
    assert (result.code, result.out) == (1, "")
    assert "is a folder: name a file" in result.err
    assert (tmp_path / "runs/best.ckpt").read_text() == "precious"


def test_what_the_terminal_cannot_show_is_escaped(picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "caf\u00e9.png")
    command = [
        sys.executable,
        "-m",
        "camp_sdk.commands.app",
        "rank",
        picture_bundle,
        "--images",
        folder,
        "--query",
        QUERY,
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "caf\\xe9.png" in done.stdout


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def needs_torch() -> None:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stopped:
        run_command(needs_torch)
    assert stopped.value.code == 1
    assert "torch is not installed; install it with: pip install '.[train]'" in capsys.readouterr().err


# Protocols


def five_each(images: int, captions: int = 5) -> Split:
    features = np.zeros((images, 2, 4), np.float32)
    return Split("test", features, ["a dog"] * (images * captions), np.repeat(np.arange(images), captions))


@pytest.mark.parametrize(
    ("protocol", "images", "folds"), [("flickr30k", 1000, 1), ("coco-5k", 5000, 1), ("coco-1k", 5000, 5)]
)
def test_data_that_fit_a_protocol(protocol: str, images: int, folds: int) -> None:
    assert protocol_folds(protocol, five_each(images)) == folds


@pytest.mark.parametrize(
    ("protocol", "split"),
    [
        ("flickr30k", five_each(5000)),
        ("coco-5k", five_each(1000)),
        ("coco-1k", five_each(1000)),
        ("flickr30k", five_each(1000, 4)),
        ("flickr30k", Split("test", np.zeros((1000, 2, 4)), ["a"] * 5000, np.arange(5000) * 999 // 4999)),
    ],
    ids=["too many", "too few", "one fold", "four captions", "uneven"],
)
def test_data_that_do_not_fit_a_protocol(protocol: str, split: Split) -> None:
    with pytest.raises(InputError, match=f"{protocol} is measured on .* images with 5 captions each; split test has"):
        protocol_folds(protocol, split)


@pytest.fixture
def small_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocols with eight images, so that the drawn scenes fit them."""
    small = {"flickr30k": (8, 1), "coco-5k": (8, 1), "coco-1k": (8, 4)}
    monkeypatch.setattr("camp_sdk.evaluation.PROTOCOLS", small)


def test_a_protocol_is_named_and_written(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path, small_protocols: None
) -> None:
    written = tmp_path / "results/flickr30k.json"
    options = ["--data", scenes, "--protocol", "flickr30k", "--output", written]
    answer = json.loads(camp("eval", picture_bundle, *options, "--json").out)
    assert answer["protocol"] == "flickr30k, 8 images x 40 captions"
    assert json.loads(written.read_text()) == answer
    plain = json.loads(camp("eval", picture_bundle, "--data", scenes, "--json").out)
    assert answer | {"protocol": plain["protocol"]} == plain
    sides = (answer["text_to_image"], answer["image_to_text"])
    assert answer["rsum"] == pytest.approx(sum(side[r] for side in sides for r in ("r1", "r5", "r10")))


def test_a_protocol_of_folds_is_the_mean_over_them(
    camp: Camp, picture_bundle: Path, scenes: Path, small_protocols: None
) -> None:
    answer = json.loads(camp("eval", picture_bundle, "--data", scenes, "--protocol", "coco-1k", "--json").out)
    folds = json.loads(camp("eval", picture_bundle, "--data", scenes, "--folds", 4, "--json").out)
    assert answer["protocol"] == "coco-1k, mean over 4 folds of 2 images"
    assert answer | {"protocol": folds["protocol"]} == folds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "flickr30k"], "flickr30k is measured on 1000 images with 5 captions each"),
        (["--protocol", "imagenet"], "--protocol 'imagenet': expected one of flickr30k, coco-5k, coco-1k"),
        (["--protocol", "coco-1k", "--folds", 5], "--folds 5: coco-1k has its own folds"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(
    camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    result = camp("eval", picture_bundle, "--data", scenes, "--output", tmp_path / "x.json", *options)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "x.json").exists()


def test_the_image_of_bad_features_is_named_in_every_fold(camp: Camp, feature_bundle: Path, precomputed: Path) -> None:
    features = np.load(precomputed / "test_ims.npy")
    features[7, 0, 0] = np.nan
    np.save(precomputed / "test_ims.npy", features)
    result = camp("eval", feature_bundle, "--data", precomputed, "--folds", 2)
    assert "image 7 of test has features that are NaN or infinite" in result.err


def test_shortlists_show_what_they_lose(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, scenes: Path
) -> None:
    options = ["--data", scenes, "--shortlist", 30, "--backend", "onnxruntime"]
    answer = json.loads(camp("eval", picture_bundle, *options, "--json").out)
    assert list(answer["shortlists"]) == ["10", "20", "30"]
    split = load_split(scenes, "test")
    images = picture_retriever.encode_images(split.images)
    rankings = picture_retriever.rank(split.captions, images, 1, shortlist=3)
    hits = [m[0].corpus_id == owner for m, owner in zip(rankings, split.image_of_caption, strict=True)]
    found = evaluate(picture_retriever, split, shortlists=[3])
    assert found.shortlists[3].text_to_image.r1 == pytest.approx(100 * np.mean(hits))
    assert found.shortlists[3].text_to_image.r10 <= found.network.text_to_image.r10
    table = camp("eval", picture_bundle, *options).out
    assert "recall with a shortlist" in table
    # All eight images are on a shortlist of ten, and scored.
    assert answer["shortlists"]["10"]["text_to_image"] == answer["text_to_image"]


def test_a_shortlist_in_camp_rank(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    options = ["--images", scenes / "test", "--query", QUERY, "--top-k", 2, "--json"]
    short = json.loads(camp("rank", picture_bundle, *options, "--shortlist", 3).out)["rankings"][0]["matches"]
    assert len(short) == 2
    whole = json.loads(camp("rank", picture_bundle, *options, "--shortlist", 8).out)["rankings"][0]["matches"]
    assert whole == json.loads(camp("rank", picture_bundle, *options).out)["rankings"][0]["matches"]


def test_rank_over_a_file_of_features(
    camp: Camp, feature_bundle: Path, feature_retriever: Retriever, precomputed: Path
) -> None:
    images = precomputed / "test_ims.npy"
    answer = json.loads(camp("rank", feature_bundle, "--images", images, "--query", QUERY, "--json").out)
    expected = feature_retriever.rank(QUERY, np.load(images))
    assert [match["corpus_id"] for match in answer["rankings"][0]["matches"]] == [match.corpus_id for match in expected]
    table = camp("rank", feature_bundle, "--images", images, "--query", QUERY).out
    assert f"row {expected[0].corpus_id}" in table


def test_a_file_that_holds_no_features_is_refused(camp: Camp, feature_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    result = camp("rank", feature_bundle, "--images", tmp_path / "x.npy", "--query", QUERY)
    assert result.code == 1
    assert "expected floats [images, regions, width]" in result.err


@pytest.mark.parametrize("query", ["", "zebra"])
def test_a_bad_query_ends_in_one_line(camp: Camp, picture_bundle: Path, scenes: Path, query: str) -> None:
    result = camp("rank", picture_bundle, "--images", scenes / "test", "--query", query)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.err


def test_a_file_whose_first_rows_are_equal_is_ranked_as_it_is(
    camp: Camp, feature_bundle: Path, features: NDArray[np.float32], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", features[[0, 0, 1, 2]])
    answer = json.loads(camp("rank", feature_bundle, "--images", tmp_path / "x.npy", "--query", QUERY, "--json").out)
    (ranking,) = answer["rankings"]
    assert sorted(match["document"] for match in ranking["matches"]) == ["row 0", "row 1", "row 2", "row 3"]


def test_a_broken_picture_ends_in_one_line(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "one.png")
    (folder / "two.png").write_bytes(b"broken")
    result = camp("rank", picture_bundle, "--images", folder, "--query", QUERY, "--json")
    assert (result.code, result.out) == (1, "")
    assert "two.png cannot be read as a picture" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_pictures_for_a_model_of_features(camp: Camp, feature_bundle: Path, scenes: Path) -> None:
    result = camp("rank", feature_bundle, "--images", scenes / "test", "--query", QUERY)
    assert result.code == 1
    assert "this bundle takes region features" in result.err.splitlines()[-1]
    assert "--skip-broken" not in result.err


def test_folds_that_do_not_divide(camp: Camp, feature_bundle: Path, precomputed: Path) -> None:
    result = camp("eval", feature_bundle, "--data", precomputed, "--folds", 3, "--json")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1] == "error: --folds is 3: 10 images do not divide into that many equal parts"


def test_an_altered_bundle(camp: Camp, bundle_copy: Path, precomputed: Path) -> None:
    (bundle_copy / "scorer.onnx").write_bytes(b"")
    result = camp("eval", bundle_copy, "--data", precomputed)
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert "scorer.onnx has 0 bytes" in line


def test_an_error_is_shown_as_it_is(camp: Camp, tmp_path: Path) -> None:
    folder = pictures_named(tmp_path / "pictures", "one.png")
    result = camp("rank", tmp_path / "[red]no[/b]", "--images", folder, "--query", QUERY)
    assert result.code == 1
    assert "[red]no[/b]/manifest.json not found" in result.err


@pytest.mark.parametrize(
    "arguments",
    [["rank"], ["eval", "bundle"], ["rank", "b", "--images", "i", "--query", "q", "--top-k", "0"], ["fly"], ["--fly"]],
)
def test_wrong_usage_is_exit_code_2(camp: Camp, arguments: list[str]) -> None:
    result = camp(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
