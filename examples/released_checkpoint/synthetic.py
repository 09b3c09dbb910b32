"""A small checkpoint of the full model, with vocabulary and data, in the formats of the released research code.

This project's own command trains the network, in the three stages of the published recipe. Only the file formats are
those of the released code: pickles of its classes, which need not be installed, and tensors under its names.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.released.files import PARTS
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
from camp_sdk.terminal import stderr

COLOURS = ("red", "blue", "green", "white", "black", "yellow")
THINGS = ("dog", "cup", "car", "bird", "ball", "hat", "tree", "boat")
SPLITS = {"train": 600, "dev": 60, "test": 200}
REGIONS, FEATURE_WIDTH = 36, 256


def make_released_files(folder: Path) -> tuple[Path, Path, Path]:
    """Write checkpoint, vocabulary and data set into a folder; returns their paths."""
    data, run = folder / "synthetic_precomp", folder / "trained"
    write_data(data)
    options = "--variant gate_fusion_new --attention-epochs 4 --fusion-epochs 1 --epochs 3"
    stderr.print(f"$ camp train --data {data} {options} --output {run} ...", style="dim", soft_wrap=True)
    run_training(
        TrainConfig(
            data,
            run,
            "gate_fusion_new",
            width=96,
            word_width=32,
            batch_size=32,
            learning_rate=2e-3,
            attention_epochs=4,
            fusion_epochs=1,
            epochs=3,
            global_weight=0.0,  # the released code has no global vectors
        )
    )
    return *write_checkpoint(run / "best.ckpt", folder), data


def write_data(folder: Path) -> None:
    """Write features, float32 [images, 36, 256], and five captions per image.

    Regions are noise, and some of them show a coloured thing.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    looks = {word: rng.standard_normal(FEATURE_WIDTH) for word in (*COLOURS, *THINGS)}
    for split, count in SPLITS.items():
        features = np.abs(rng.standard_normal((count, REGIONS, FEATURE_WIDTH), dtype=np.float32)) / 4
        captions = []
        for regions in features:
            seen = [(str(rng.choice(COLOURS)), str(rng.choice(THINGS))) for _ in range(4)]
            for colour, thing in seen:
                regions[rng.choice(REGIONS, 4, replace=False)] += looks[colour] + looks[thing]
            for _ in range(5):
                first, second = rng.permutation(len(seen))[:2]
                captions.append("A {} {} and a {} {} .".format(*seen[first], *seen[second]))
        np.save(folder / f"{split}_ims.npy", features)
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def write_checkpoint(trained: Path, folder: Path) -> tuple[Path, Path]:
    """Write a checkpoint of this project in the released formats.

    Args:
        trained: the checkpoint of this project.
        folder: folder to write into.

    Returns:
        The paths of the .pth.tar with the weights, and of the pickled vocabulary.
    """
    model, origin = load_checkpoint(trained)
    states = [
        {f"module.{name}": tensor for name, tensor in model.get_submodule(part).state_dict().items()}
        for part in PARTS.values()
    ]
    options = foreign_class("easydict", "EasyDict", dict)(
        measure=origin.model.variant, embed_size=origin.model.width, no_imgnorm=True, no_txtnorm=True, bi_gru=True
    )
    checkpoint, vocab = folder / "model_best.pth.tar", folder / "synthetic_precomp_vocab.pkl"
    torch.save({"model": states, "opt": options, "epoch": 3, "best_rsum": 0.0, "Eiters": 0}, checkpoint)
    words: dict[str, int] = json.loads(origin.tokenizer)["model"]["vocab"]
    vocabulary = foreign_class("vocab", "Vocabulary", object)()
    vocabulary.word2idx = words
    vocabulary.idx2word = {index: word for word, index in words.items()}
    vocabulary.idx = len(words)
    vocab.write_bytes(pickle.dumps(vocabulary))
    return checkpoint, vocab


def foreign_class(module: str, name: str, base: type) -> type:
    """A class that pickles as ``module.name``, as if that module defined it."""
    made = type(name, (base,), {"__module__": module})
    stand_in = types.ModuleType(module)
    setattr(stand_in, name, made)
    sys.modules[module] = stand_in
    return made
