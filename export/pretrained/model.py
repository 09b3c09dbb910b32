"""From a published model to a checkpoint: its configuration, weights, tokenizer and preprocessing, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.towers import (
    EXTRA,
    TEXT_SIZES,
    VISION_SIZES,
    TowersConfig,
    build_model,
    open_towers,
    transformers_library,
)
from camp_sdk.export.pretrained.preprocessing import pixel_spec
from camp_sdk.export.pretrained.source import CONFIG, MAX_REASON, WEIGHTS, Source
from camp_sdk.export.pretrained.words import padding_of, tokenizer_of
from camp_sdk.runtime.errors import BundleError, CampError, MissingExtraError
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.tokenizer import Tokenizer

# The configuration's class in `transformers`, by model_type in config.json, which is also the kind of the towers.
# Models of SigLIP 2 for pictures of one size are "siglip"; "siglip2" takes any number of patches.
KINDS = {"clip": "CLIPConfig", "siglip": "SiglipConfig"}
# For kinds that people take for one of these.
ADVICE = {
    "siglip2": "a SigLIP 2 for pictures of any size (NaFlex), which is not supported; use one for pictures of one "
    "size, such as google/siglip2-base-patch16-224, which has model_type 'siglip'"
}
MAX_LOG_SCALE = 20  # published ones are below 5; float32 holds no more than 88
EXAMPLES = 24
CAPTIONS = (
    "a photo of a dog",
    "two people ride bicycles along a river",
    "a red car",
    "a bowl of fruit on a wooden table",
    "snow",
    "a black and white photo of an old lighthouse above the sea, with waves breaking on the rocks below it",
    "children play football in the street",
    "a cat asleep on a sofa",
    "a plane takes off at sunset",
    "an empty train station at night",
    "a woman in a yellow coat holds an umbrella",
    "mountains",
    "a market stall with fish, lemons and ice",
    "the logo of a bank",
    "a drawing of a house by a child",
    "three horses",
)


def read_model(source: Source) -> tuple[Camp, Origin]:
    """The network of a published model, with its weights, and everything else that a checkpoint holds.

    Args:
        source: the published model.

    Raises:
        BundleError: a file is missing or broken, is of a model of another kind, or the files do not fit together.
        MissingExtraError: transformers or safetensors is not installed.
    """
    towers = read_towers(source)
    config = config_of(towers)
    pixels = pixel_spec(source.preprocessing(), grid_of(towers))
    if (pixels.height, pixels.width) != (config.picture_size, config.picture_size):
        made = f"{pixels.height} x {pixels.width}"
        raise BundleError(f"{source.folder} makes pictures of {made}, its model takes {config.picture_size} squared")
    tokenizer = tokenizer_of(source, towers.text["max_position_embeddings"])
    words = Tokenizer(tokenizer).vocabulary_size
    if words > config.vocabulary_size:
        raise BundleError(f"{source.folder} has {words} tokens, its model embeds {config.vocabulary_size}")
    with torch.device("meta"):  # random weights would only be replaced
        camp = Camp(config)
    camp.vision, camp.image_encoder, camp.text_encoder, camp.scorer = open_towers(towers, _with_weights(source, towers))
    examples = torch.from_numpy(example_pictures(config.picture_size))
    training = {"pretrained": source.name, "revision": source.revision}
    return camp.eval(), Origin(config, pixels, tokenizer, examples, list(CAPTIONS), training)


def config_of(towers: TowersConfig) -> ModelConfig:
    """The configuration of a network that is two towers.

    Args:
        towers: their sizes.
    """
    return ModelConfig(
        vocabulary_size=towers.text["vocab_size"],
        variant=towers.kind,
        width=towers.projection,
        feature_width=towers.vision["hidden_size"],
        word_width=towers.text["hidden_size"],
        picture_size=towers.vision["image_size"],
        global_vectors=False,  # the scorer makes them itself
        vision=towers.kind,
        towers=towers,
    )


def _with_weights(source: Source, towers: TowersConfig) -> Any:
    """The model of `transformers` with its published weights."""
    weights = read_weights(source)
    with torch.device("meta"):  # a file may ask for a network of any size: only weights of its shapes bear it out
        expected = _built(source, towers).state_dict()
    check_weights(source, expected, weights)
    model = _built(source, towers)
    model.load_state_dict(weights)
    return model


def _built(source: Source, towers: TowersConfig) -> Any:
    try:
        return build_model(towers)
    except CampError:
        raise
    except Exception as error:  # of any type: transformers and torch check sizes in their own ways
        raise BundleError(f"{source.folder / CONFIG} describes no model that can be built: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The reason of another package on one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def read_towers(source: Source) -> TowersConfig:
    """The kind and the sizes of a published model.

    Args:
        source: the published model.

    Raises:
        BundleError: its config.json is broken, or describes a model of another kind.
        MissingExtraError: transformers is not installed.
    """
    raw, path = source.read_json(CONFIG), source.folder / CONFIG
    kind = str(raw.get("model_type"))
    if kind not in KINDS:
        advice = ADVICE.get(kind, f"expected {' or '.join(KINDS)}")
        raise BundleError(f"{path} has model_type {brief(raw.get('model_type'))}: {advice}")
    whole = _parsed(kind, raw, path)
    try:
        text = {name: getattr(whole.text_config, name) for name in TEXT_SIZES[kind]}
        vision = {name: getattr(whole.vision_config, name) for name in VISION_SIZES}
        _check_rest(kind, whole)
        if kind == "clip":
            return TowersConfig(kind, text, vision, whole.projection_dim)
        padding = padding_of(source, whole.text_config.pad_token_id)
        return TowersConfig(kind, text, vision, whole.text_config.projection_size, *padding)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} does not describe a model of {kind}: {_line(error)}") from None


def _parsed(kind: str, raw: dict[str, Any], path: Path) -> Any:
    """The configuration of `transformers`, with its default values."""
    library = transformers_library()
    before = library.logging.get_verbosity()
    library.logging.set_verbosity_error()  # it warns of markers that are not used here
    try:
        return getattr(library, KINDS[kind]).from_dict(raw)
    except Exception as error:  # of any type: values are checked by several packages
        raise BundleError(f"{path} does not describe a model of {kind}: {_line(error)}") from None
    finally:
        library.logging.set_verbosity(before)


def _check_rest(kind: str, whole: Any) -> None:
    """Raise ValueError for settings that the towers here do not have."""
    if whole.vision_config.num_channels != 3:
        raise ValueError(f"num_channels is {brief(whole.vision_config.num_channels)}, expected 3")
    if kind == "siglip" and not whole.vision_config.vision_use_head:
        raise ValueError("vision_use_head is false, expected a pooling head")
    if kind == "siglip" and whole.text_config.projection_size != whole.vision_config.hidden_size:
        found = brief([whole.text_config.projection_size, whole.vision_config.hidden_size])
        raise ValueError(f"projection_size and hidden_size are {found}, expected vectors of one width")


def grid_of(towers: TowersConfig) -> tuple[int, int]:
    """Rows and columns of the regions; (0, 0) for CLIP, whose first region is a class token.

    Args:
        towers: the sizes.
    """
    if towers.kind == "clip":
        return 0, 0
    side = towers.vision["image_size"] // towers.vision["patch_size"]
    return side, side


def read_weights(source: Source) -> dict[str, Tensor]:
    """The weights in float32, by the names of `transformers`. Nothing in the file is run.

    Args:
        source: the published model.

    Raises:
        BundleError: there is no model.safetensors, or it is broken.
        MissingExtraError: safetensors is not installed.
    """
    path = source.folder / WEIGHTS
    if not path.is_file():
        raise BundleError(f"{path} not found: weights are read from safetensors only; convert them with transformers")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("safetensors", EXTRA) from None
    try:
        found = load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {_line(error)}") from None
    # Files of older versions also list the positions 0, 1, 2 ...
    weights = {name: tensor for name, tensor in found.items() if not name.endswith(".position_ids")}
    for name, tensor in weights.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise BundleError(f"{path} has {brief(name)} in {tensor.dtype}: expected floats of 16, 32 or 64 bits")
    return {name: tensor.float() for name, tensor in weights.items()}


def check_weights(source: Source, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise BundleError unless the weights are those of the model, each of its shape, finite, and with a usual scale.

    Args:
        source: the published model.
        expected: tensors of the right shapes by name.
        found: the weights.
    """
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{brief(name)} is not of this model" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        if found[name].shape != expected[name].shape:
            faults.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
        elif not bool(found[name].isfinite().all()):
            faults.append(f"{name} holds data other than finite numbers")
    scale = found.get("logit_scale")
    if not faults and scale is not None and abs(float(scale)) > MAX_LOG_SCALE:
        faults.append(f"logit_scale is {float(scale)}, expected the logarithm of a factor, at most {MAX_LOG_SCALE}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BundleError(f"{source.folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(faults[:5])}{more}")


def example_pictures(size: int) -> NDArray[np.uint8]:
    """Pictures [24, S, S, 3] of smooth random colours, for the checks of the export; the same at each call.

    Args:
        size: S.
    """
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (3 + i % 6, 4, 3), dtype=np.uint8)) for i in range(EXAMPLES)]
    return np.stack([np.asarray(one.resize((size, size), Image.Resampling.BICUBIC)) for one in small])
