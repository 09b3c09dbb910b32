"""Import a checkpoint of the released research code, so that `camp export` accepts it.

    camp import RELEASED.pth.tar --vocab VOCAB --output runs/imported
    camp export --checkpoint runs/imported/best.ckpt --output bundle/

All four scorers are supported: cross_attention, cross_attention_new, gate_fusion, gate_fusion_new. Nothing in the files
is executed. Without --data, the parity gate of the export runs on random examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import is_empty
from camp_sdk.terminal import run_command, stderr

EXAMPLES = 24
REGIONS = 36


def import_checkpoint(checkpoint: Path, vocab: Path, output: Path, data: Path | None = None) -> Path:
    """Convert a released checkpoint, and write it as ``output``/best.ckpt.

    Args:
        checkpoint: a checkpoint of the released code.
        vocab: its vocabulary, pickled or JSON.
        output: the folder to write into; new or empty.
        data: a folder of precomputed features. Its dev or test split provides the examples for the checks of the
            export, and their frequent words; without it, the examples are random.

    Returns:
        The path of best.ckpt.

    Raises:
        BundleError: the checkpoint, vocabulary or data set is broken or of another kind, or they do not fit together.
        InputError: ``output`` is not empty.
        OSError: the disk is full, or nothing can be written to ``output``.
    """
    import torch  # imported here so that --help does not wait for it

    from camp_sdk.export.network.checkpoint import KEY, Origin, write_checkpoint
    from camp_sdk.export.network.vocabulary import frequent_tokens
    from camp_sdk.export.released.files import read_checkpoint, read_vocabulary
    from camp_sdk.export.released.nltk_words import nltk_tokenizer

    if output.exists() and not is_empty(output):
        raise InputError(f"{output} is not empty: name a new folder")
    released, words = read_checkpoint(checkpoint), read_vocabulary(vocab)
    config = released.config
    if len(words) != config.vocabulary_size:
        raise BundleError(
            f"{vocab} has {len(words)} words, {checkpoint} embeds {config.vocabulary_size}: "
            "expected the vocabulary it was trained with"
        )
    width = config.feature_width
    images, captions = real_examples(data, width) if data else random_examples(words, width)
    tokenizer = nltk_tokenizer(words).to_str()
    stop_words = frequent_tokens(tokenizer, captions) if data else []  # random captions are not like a user's queries
    origin = Origin(config, None, tokenizer, torch.from_numpy(images), captions, released.training, stop_words)
    state = {f"model.{name}": tensor for name, tensor in released.weights.items()}
    path = output / "best.ckpt"
    write_checkpoint({"state_dict": state, KEY: origin.as_dict()}, path)
    return path


def real_examples(data: Path, width: int) -> tuple[NDArray[np.float32], list[str]]:
    """Up to 24 images of a data set's dev (or test) split, as features [I, R, D], and their captions.

    Args:
        data: a folder of precomputed features.
        width: D.

    Raises:
        BundleError: the data set is broken, holds pictures, or has features of another width.
    """
    from camp_sdk.data import load_split

    names = [name for name in ("dev", "val", "test") if (data / f"{name}_ims.npy").is_file()]
    if not names and not (data / "dev").is_dir() and not (data / "val").is_dir():
        raise BundleError(
            f"{data} has neither dev_ims.npy, val_ims.npy nor test_ims.npy: expected a folder of precomputed features"
        )
    split = load_split(data, names[0] if names else "dev")
    if split.has_pictures:
        raise BundleError(f"{data} holds pictures: expected precomputed features of width {width}")
    features: Any = split.images
    if features.shape[2] != width:
        raise BundleError(f"{data} has features of width {features.shape[2]}, the checkpoint takes {width}")
    captions = [split.captions[index] for index in np.flatnonzero(split.image_of_caption < EXAMPLES)]
    with np.errstate(over="ignore"):
        examples = np.array(features[:EXAMPLES], np.float32)
    if not np.isfinite(examples).all():
        raise BundleError(f"{data} has features that are NaN or infinite: expected finite float32 numbers")
    return examples, captions


def random_examples(words: dict[str, int], width: int) -> tuple[NDArray[np.float32], list[str]]:
    """Random features [24, 36, D] and captions of 3 to 20 words, the same at each call.

    The features are positive, as those of detectors are.

    Args:
        words: the vocabulary.
        width: D.
    """
    from camp_sdk.export.network.vocabulary import SPECIALS

    rng, plain = np.random.default_rng(0), sorted(words.keys() - SPECIALS)
    images: NDArray[np.float32] = rng.random((EXAMPLES, REGIONS, width), dtype=np.float32)
    return images, [" ".join(rng.choice(plain, rng.integers(3, 21))) for _ in range(2 * EXAMPLES)]


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the released code (.pth.tar).")],
    vocab: Annotated[Path, typer.Option(help="Its vocabulary: the pickle, or JSON with the same keys.")],
    output: Annotated[Path, typer.Option(help="Folder to write best.ckpt into.")],
    data: Annotated[Path | None, typer.Option(help="Precomputed features that the export is checked on.")] = None,
) -> None:
    """Import a checkpoint of the released research code."""
    path = import_checkpoint(checkpoint, vocab, output, data)
    following = f"camp export --checkpoint {path} --output bundle/"
    stderr.print(f"wrote {path}; next: {following}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(command)
