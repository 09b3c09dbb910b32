"""Rank pictures by a text with the files of a bundle alone: onnxruntime, tokenizers, numpy and Pillow, no camp-sdk.

    python examples/without_sdk/rank.py bundle/ "a red circle" photos/*.png

docs/graphs.md explains every step.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

TURNS = Image.Transpose  # by the value of the EXIF orientation, what turns a picture upright
UPRIGHT = {
    2: TURNS.FLIP_LEFT_RIGHT,
    3: TURNS.ROTATE_180,
    4: TURNS.FLIP_TOP_BOTTOM,
    5: TURNS.TRANSPOSE,
    6: TURNS.ROTATE_270,
    7: TURNS.TRANSVERSE,
    8: TURNS.ROTATE_90,
}
IMAGES_AT_ONCE = 32


def tokens_of(bundle: Path, texts: list[str]) -> dict[str, Any]:
    """Token ids [T, N] int64, padded with 0, and lengths [T] int64, which count both markers."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a marker typed in a text is an ordinary word
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    lengths = np.array([len(row) for row in rows], np.int64)  # [T]
    tokens = np.zeros((len(rows), lengths.max()), np.int64)  # [T, N]
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return {"tokens": tokens, "lengths": lengths}


def pixels_of(path: Path, spec: dict[str, Any]) -> Any:
    """A picture file as the vision graph takes it: [3, H, W] float32."""
    picture, box = decoded(path, spec)
    size = (spec["width"], spec["height"])
    across, down = box[2] - box[0], box[3] - box[1]
    if spec["fit"] == "letterbox":
        scale = min(size[0] / across, size[1] / down)
        inner = (max(1, round(across * scale)), max(1, round(down * scale)))
        fitted = Image.new("RGB", size, "white")
        small = picture.resize(inner, Image.Resampling.BILINEAR, box)
        fitted.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    else:
        if spec["fit"] == "crop":
            scale = max(size[0] / across, size[1] / down)
            sides, ends = max(0.0, across - size[0] / scale) / 2, max(0.0, down - size[1] / scale) / 2
            box = (box[0] + sides, box[1] + ends, box[2] - sides, box[3] - ends)
        fitted = picture.resize(size, Image.Resampling.BILINEAR, box)
    mean, std = (np.array(spec[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
    scaled = np.asarray(fitted).transpose(2, 0, 1).astype(np.float32) / np.float32(255)  # [3, H, W]
    return (scaled - mean) / std


def decoded(path: Path, spec: dict[str, Any]) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """An upright RGB picture, and the box in it that the picture fills: large JPEGs are decoded at a smaller scale."""
    with Image.open(path) as opened:
        orientation, drafted = opened.getexif().get(0x0112, 1), None
        if opened.format in ("JPEG", "MPO"):
            turned = (spec["height"], spec["width"]) if orientation in (5, 6, 7, 8) else (spec["width"], spec["height"])
            scales = [want / have for want, have in zip(turned, opened.size, strict=True)]
            if spec["fit"] != "stretch":
                scales = [min(scales) if spec["fit"] == "letterbox" else max(scales)] * 2
            least = [
                max(1, math.ceil(2 * have * scale - 1e-6)) for have, scale in zip(opened.size, scales, strict=True)
            ]
            drafted = opened.draft(None, (least[0], least[1]))
        opened.load()
        picture = opened.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else opened.copy()
    if picture.has_transparency_data:  # laid over white
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    picture = picture.convert("RGB")
    across, down = drafted[1][2:] if drafted else opened.size
    across, down = (down, across) if orientation in (5, 6, 7, 8) else (across, down)
    left = picture.width - across if orientation in (2, 3, 6, 7) else 0
    top = picture.height - down if orientation in (3, 4, 7, 8) else 0
    return picture, (left, top, left + across, top + down)


class Graph:
    """One graph of a bundle, whose inputs and outputs have names."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Run on those of the tensors that it reads."""
        feeds = {own.name: tensors[own.name] for own in self._session.get_inputs()}
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


def score(bundle: Path, texts: list[str], paths: list[Path]) -> Any:
    """The score of every picture and every text [I, T]; higher is better."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    vision, image, text, scorer = (Graph(bundle / f"{name}.onnx") for name in ("vision", "image", "text", "scorer"))
    encoded_texts = text.run(tokens_of(bundle, texts))  # [T, ...] each
    logits = []
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        pixels = np.stack([pixels_of(path, manifest["pixels"]) for path in paths[start : start + IMAGES_AT_ONCE]])
        encoded_images = image.run(vision.run({"pixels": pixels}))  # [I, ...] each
        logits.append(scorer.run(encoded_images | encoded_texts)["logits"])  # [I, T]
    whole = np.concatenate(logits)
    return 1 / (1 + np.exp(-whole)) if manifest["activation"] == "sigmoid" else whole


def main(bundle: str, query: str, *pictures: str) -> None:
    """Print the pictures, best first."""
    scores = score(Path(bundle), [query], [Path(picture) for picture in pictures])[:, 0]
    for place, index in enumerate(np.argsort(-scores, kind="stable"), start=1):
        print(f"{place}. {scores[index]:.4f} {pictures[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
