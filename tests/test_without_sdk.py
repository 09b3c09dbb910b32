"""The programs of docs/graphs.md: they need no camp-sdk, give its pixels, tokens and scores, and stand in the page."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import Bundle, Retriever
from camp_sdk.export.bundling.example_inputs import drawn
from camp_sdk.pictures import normalise, read_picture
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.golden import read_golden
from camp_sdk.runtime.manifest import FITS, PixelSpec
from camp_sdk.runtime.tensorrt.build import EngineOrder, trtexec_command
from camp_sdk.runtime.tensorrt.plans import Here
from camp_sdk.runtime.tokenizer import open_tokenizer
from examples.without_sdk import rank
from tests.helpers.processes import run_blocked
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH, WIDTH

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "without_sdk"
PAGE = (ROOT / "docs" / "graphs.md").read_text(encoding="utf-8")
TEXTS = ["A red circle, above <end> a zebra!", *CAPTIONS, " ".join(["star"] * 60)]


def saved(picture: Image.Image, name: str, folder: Path, **options: Any) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def turned(value: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every kind that the program reads: turned, transparent, grey, with a palette, small and large."""
    folder, wide = tmp_path_factory.mktemp("files"), Image.fromarray(drawn(701, 413))
    clear = wide.resize((150, 90)).convert("RGBA")
    clear.putalpha(Image.fromarray(drawn(150, 90)[..., 0]))
    large = [saved(wide, f"turned-{value}.jpg", folder, exif=turned(value)) for value in range(1, 9)]
    return [
        *large,
        saved(wide, "wide.png", folder),
        saved(wide.resize((40, 30)), "small.jpg", folder),
        saved(wide.convert("L"), "grey.jpg", folder),
        saved(wide.convert("CMYK"), "inks.jpg", folder),
        saved(clear, "clear.png", folder),
        saved(clear.convert("LA"), "grey-clear.png", folder),
        saved(wide.quantize(16), "palette.png", folder),
        saved(wide.quantize(16), "palette-clear.png", folder, transparency=3),
        saved(wide, "upside-down.png", folder, exif=turned(3)),
    ]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(96, 96), (64, 100)])
def test_pixels_are_those_of_the_sdk_to_the_bit(pictures: list[Path], fit: str, size: tuple[int, int]) -> None:
    spec = PixelSpec(*size, (0.5, 0.4, 0.3), (0.25, 0.25, 0.5), (6, 6), fit)
    for path in pictures:
        expected = normalise(read_picture(path, *size, path.name, fit)[None], spec)[0]
        np.testing.assert_array_equal(rank.pixels_of(path, spec.as_dict()), expected, err_msg=path.name)


def test_a_jpeg_of_these_is_decoded_at_a_smaller_scale(pictures: list[Path]) -> None:
    """Or the test above would not test that."""
    spec = PixelSpec(96, 96, (0.5,) * 3, (0.25,) * 3, (6, 6), "crop")
    picture, box = rank.decoded(pictures[5], spec.as_dict())  # turned by a quarter
    assert picture.size == (207, 351)
    assert box[2] - box[0] == 206.5


def test_tokens_are_those_of_the_sdk(picture_bundle: Path, released_bundle: Callable[[str], Path]) -> None:
    for folder in (picture_bundle, released_bundle("gate_fusion")):
        expected, found = open_tokenizer(Bundle(folder)).encode(TEXTS), rank.tokens_of(folder, TEXTS)
        np.testing.assert_array_equal(found["tokens"], expected.ids)
        np.testing.assert_array_equal(found["lengths"], expected.lengths)


def test_golden_examples_become_their_inputs(picture_bundle: Path, tmp_path: Path) -> None:
    golden = read_golden(Bundle(picture_bundle))
    assert golden.picture is not None
    assert golden.caption is not None
    (tmp_path / "golden.png").write_bytes(golden.picture.tobytes())
    spec = json.loads((picture_bundle / "manifest.json").read_text())["pixels"]
    np.testing.assert_array_equal(rank.pixels_of(tmp_path / "golden.png", spec), golden.picture_pixels)
    tokens = rank.tokens_of(picture_bundle, [golden.caption])["tokens"][0]
    np.testing.assert_array_equal(tokens, golden.caption_tokens)


def test_scores_are_those_of_the_sdk(
    picture_bundle: Path, picture_retriever: Retriever, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "IMAGES_AT_ONCE", 7)  # several blocks, and a smaller last one
    found = rank.score(picture_bundle, CAPTIONS, pictures)
    expected = picture_retriever.score_matrix(picture_retriever.encode_images(pictures), CAPTIONS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # float32 sums in blocks of other sizes


def test_the_program_ranks_like_the_sdk_and_imports_nothing_of_it(
    picture_bundle: Path, picture_retriever: Retriever, pictures: list[Path]
) -> None:
    code = (
        "import runpy\nsys.modules |= dict.fromkeys(['camp_sdk', 'runtime'])\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    query = "a red circle"
    done = run_blocked(code, FOLDER / "rank.py", picture_bundle, query, *pictures)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    best = picture_retriever.rank(query, picture_retriever.encode_images(pictures), top_k=len(pictures))
    assert [Path(line[2]) for line in lines] == [Path(match.document or "") for match in best]
    assert [float(line[1]) for line in lines] == pytest.approx([match.score for match in best], abs=6e-5)  # as printed


# The program in C++


def onnxruntime_folders() -> tuple[Path, Path] | None:
    """The folders of ONNX Runtime's C++ headers and of its library: of $ORT, or of the system."""
    homes = [Path(os.environ["ORT"])] if "ORT" in os.environ else []
    for home in (*homes, Path("/usr/local"), Path("/usr")):
        headers = next((home / "include").rglob("onnxruntime_cxx_api.h"), None) if home.is_dir() else None
        library = next(home.glob("lib*/**/libonnxruntime.so"), None) if headers else None
        if headers and library:
            return headers.parent, library.parent
    return None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_program_in_cpp_gives_the_logits_of_pytorch(
    feature_bundle: Path, released_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = onnxruntime_folders()
    if folders is None:
        pytest.skip("ONNX Runtime's C++ headers and library are not installed; $ORT names the folder of a release")
    headers, library = folders
    options = ["-std=c++17", "-Wall", "-Wextra", f"-I{headers}", f"-L{library}", f"-Wl,-rpath,{library}"]
    command = ["g++", *options, str(FOLDER / "score.cpp"), "-lonnxruntime", "-o", str(tmp_path / "score")]
    subprocess.run(command, check=True)
    for folder in (feature_bundle, released_bundle("gate_fusion_new")):
        with zipfile.ZipFile(folder / "golden.npz") as archive:
            archive.extractall(tmp_path / "golden")
        done = subprocess.run([tmp_path / "score", folder, tmp_path / "golden"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        expected = read_golden(Bundle(folder)).logits
        np.testing.assert_allclose(np.loadtxt(io.StringIO(done.stdout)), expected, rtol=0, atol=1e-4)  # the export's
        np.save(tmp_path / "golden" / "logits.npy", expected + 1)
        done = subprocess.run([tmp_path / "score", folder, tmp_path / "golden"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "largest difference from PyTorch: 1.0e+00\n")


# The page


def test_the_page_includes_the_programs() -> None:
    assert re.findall(r'^--8<-- "(.*)"$', PAGE, flags=re.MULTILINE) == [
        "examples/without_sdk/rank.py",
        "examples/without_sdk/score.cpp",
    ]
    assert "pymdownx.snippets" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_commands_of_trtexec_are_those_of_camp_build(feature_bundle: Path) -> None:
    """The page's are for d = 1024 and features of width 2048; those of the small bundle differ in these numbers."""
    text = "\n".join(re.findall(r"^    (.*)", PAGE, flags=re.MULTILINE)).replace("\\\n", " ")
    shown = {words[1]: words for line in text.splitlines() if (words := shlex.split(line)) and words[0] == "trtexec"}
    assert len(shown) == 3
    for graph in ("image", "text", "scorer"):
        order = EngineOrder(Bundle(feature_bundle), graph, "float32", Here("tensorrt", "10.3.0", "8.7"), Limits())
        command = trtexec_command(order).replace(str(feature_bundle), "bundle")
        command = re.sub(rf"(x\d+)x{WIDTH}(?=[,\s])", r"\1x1024", command) if graph == "scorer" else command
        assert shown[f"--onnx=bundle/{graph}.onnx"] == shlex.split(command.replace(f"x{FEATURE_WIDTH} ", "x2048 "))


def test_the_page_names_every_array_of_golden_npz(picture_bundle: Path) -> None:
    with np.load(picture_bundle / "golden.npz") as file:
        for name in file.files:
            assert re.search(rf"^\| .*`{name}` `\[", PAGE, flags=re.MULTILINE), name
