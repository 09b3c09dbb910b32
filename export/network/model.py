"""The whole network, assembled from its parts, and the configuration that rebuilds it.

Shapes as in camp.py: I images of R regions, T texts of N words, D the width of a region's features, d the width of the
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.backbones import EfficientNetLite, OnnxVision
from camp_sdk.export.network.camp import Scorer, Tensors
from camp_sdk.export.network.encoders import ImageEncoder, VisionNet, WordVectors, word_mask
from camp_sdk.export.network.frozen import VECTOR, FrozenNetwork, GivenWords
from camp_sdk.export.network.networks import NetworkError, is_own, network_named, raised
from camp_sdk.export.network.sentences import SentenceConfig, SentenceEncoder
from camp_sdk.export.network.tower_parts import TowerVision
from camp_sdk.export.network.towers import TowersConfig, open_towers
from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.runtime.contract import FEATURES
from camp_sdk.runtime.errors import CampError, InputError
from camp_sdk.runtime.messages import brief

Vision = VisionNet | EfficientNetLite | OnnxVision | TowerVision | FrozenNetwork
BACKBONE = "backbone"  # the words and the vision network of a model on a frozen network


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild a network before its weights are loaded.

    Args:
        vocabulary_size: the number of tokens.
        variant: the network's name, as `network_named` takes it.
        width: d.
        feature_width: D, and the widths of further inputs of the image encoder if it has any.
        word_width: the width of the word vectors.
        picture_size: the size of a picture in pixels, or the height that a user's graph takes; 0 for a model that takes
            precomputed region features.
        global_vectors: whether maps to a global vector are trained for each side. Checkpoints of the released code and
            two towers have none. On a frozen network, they serve training alone: see `Camp`.
        words: "learned" for learned word vectors, the name of a pretrained sentence encoder, or "backbone".
        sentence: the sizes of that encoder; None for learned word vectors.
        vision: the network from pixels to region features: "small" (a `VisionNet`), "efficientnet-lite0", or "onnx"
            (the user's graph), or "backbone". Ignored if ``picture_size`` is 0, and for two towers.
        backbone: the frozen network that gives the regions, the words and the global vectors, if there is one.
        towers: the two towers of a pretrained model, which are then the whole network; None for a network of CAMP's.
    """

    vocabulary_size: int
    variant: str = "paper"
    width: int = 1024
    feature_width: int = 2048
    word_width: int = 300
    picture_size: int = 0
    global_vectors: bool = True
    words: str = LEARNED
    sentence: SentenceConfig | None = None
    vision: str = "small"
    towers: TowersConfig | None = None
    backbone: ModelConfig | None = None

    @property
    def has_vectors(self) -> bool:
        """Whether each side has a global vector, trained or of the frozen network."""
        return self.global_vectors or self.backbone is not None


class Camp(nn.Module):
    """The whole network: vision (if it takes pictures), both encoders, the scorer and, if configured, global vectors.

    On a frozen network, the global vectors are those of the frozen network. In training mode, they are those of the
    encoders that are trained: a loss on them aligns both sides early. Without it, training stayed on its first plateau
    for half of a run.

    Args:
        config: sizes and variant; the weights are random until they are loaded.

    Raises:
        InputError: the network or the vision network is unknown, the picture size does not suit the vision network, or
            the features are too narrow for the inputs of the image encoder.
        NetworkError: the network's own code raised an error.
        MissingExtraError: the package of the vision network is not installed.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision: Vision | None
        self.image_encoder: nn.Module
        self.text_encoder: nn.Module
        self.scorer: Scorer
        if config.towers is not None:
            parts = open_towers(config.towers)
            self.vision, self.image_encoder, self.text_encoder, self.scorer = parts
            self.inputs = {FEATURES: config.feature_width}
            return
        network = network_named(config.variant)
        self.vision = _vision_of(config)
        vector = {VECTOR: self.vision.vector_width} if isinstance(self.vision, FrozenNetwork) else {}
        self.inputs = image_inputs(network.image_encoder, config.feature_width - sum(vector.values())) | vector
        try:  # in this order, in which random weights have always been drawn
            self.image_encoder = network.image_encoder(self.inputs[FEATURES], config.width)
            self.text_encoder = network.text_encoder(_words_of(config), config.word_width, config.width)
            self.scorer = network(config.width)
        except Exception as error:  # whatever the user's code raises
            if isinstance(error, CampError) or not is_own(network):
                raise
            raise NetworkError(f"the network {config.variant} cannot be made: {raised(error)}") from error
        if config.global_vectors:
            self.global_v = nn.Linear(config.width, config.width)
            self.global_t = nn.Linear(config.width, config.width)

    def region_features(self, images: Tensor) -> Tensor:
        """Features [I, R, D] of pixels [I, 3, H, W] by the vision network; features are returned unchanged."""
        return images if self.vision is None or images.ndim != 4 else cast(Tensor, self.vision(images))

    def encode_images(self, features: Tensor) -> Tensors:
        """Features [I, R, D] -> the image tensors of the bundle.

        They include `image.global` [I, d], of unit length, if the network has global vectors.
        """
        return self.encode_inputs(*self.columns_of(features))

    def columns_of(self, features: Tensor) -> tuple[Tensor, ...]:
        """Split features into the inputs of the image encoder.

        Args:
            features: [I, R, D].

        Returns:
            Each input [I, R, width], in the encoder's order.
        """
        return features.split_with_sizes(list(self.inputs.values()), -1)

    def encode_inputs(self, *inputs: Tensor) -> Tensors:
        """As `encode_images`, with each input of the image encoder by itself.

        Args:
            inputs: each [I, R, width], as `columns_of` returns them.
        """
        frozen = isinstance(self.vision, FrozenNetwork)
        V = self.image_encoder(*(inputs[:-1] if frozen else inputs))
        kept = self.scorer.image_side(V)
        if frozen and not self.training:
            kept["image.global"] = inputs[-1][:, 0]
        elif self.config.global_vectors:
            kept["image.global"] = F.normalize(self.global_v(V.mean(1)), dim=-1)
        return kept

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensors:
        """Tokens [T, N] and lengths [T], int64 -> the text tensors of the bundle.

        They include `text.global` [T, d], of unit length, if the network has global vectors.
        """
        if not isinstance(self.vision, FrozenNetwork):
            return self.text_tensors(self.text_encoder(tokens, lengths), lengths, tokens.shape[1])
        words, vector = self.vision.read(tokens, lengths)  # [T, N, w], [T, d of the frozen network]
        kept = self.text_tensors(self.text_encoder(words, lengths), lengths, tokens.shape[1])
        return kept if self.training else kept | {"text.global": vector}

    def text_tensors(self, T: Tensor, lengths: Tensor, words: int) -> Tensors:
        """The text tensors of the bundle from what the text encoder makes.

        Args:
            T: [T, N, d].
            lengths: [T] int64.
            words: N.
        """
        kept = self.scorer.text_side(T, word_mask(lengths, words))
        if self.config.global_vectors:
            mean = T.sum(1) / lengths[:, None].to(T.dtype)  # [T, d]; words beyond the length are zero
            kept["text.global"] = F.normalize(self.global_t(mean), dim=-1)
        return kept

    def forward(self, features: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits [I, T] of all images against all texts."""
        return cast(Tensor, self.scorer(self.encode_images(features), self.encode_texts(tokens, lengths)))


def image_inputs(encoder: type[nn.Module], feature_width: int) -> dict[str, int]:
    """The width of each input of an image encoder; together, they are the columns of an image's features.

    Args:
        encoder: the encoder's class. One without `inputs` takes features alone.
        feature_width: the number of columns. `features` gets those that the other inputs leave.

    Raises:
        InputError: the inputs are not declared as expected, or no column is left.
    """
    declared = getattr(encoder, "inputs", ImageEncoder.inputs)
    if not isinstance(declared, Mapping) or FEATURES not in declared:
        raise InputError(f"{encoder.__name__} declares the inputs {brief(declared)}: expected features, and others")
    (first, _), *others = declared.items()
    axes = [str(other).split() for _, other in others]
    names = [name for name, _ in others]
    wrong = any(axis[:2] != ["I", "R"] or len(axis) != 3 or not axis[2].isdecimal() for axis in axes)
    if wrong or first != FEATURES or names != sorted(names):
        raise InputError(
            f"{encoder.__name__} declares the inputs {dict(declared)}: expected features, and others by name as 'I R 4'"
        )
    widths = {name: int(axis[2]) for name, axis in zip(names, axes, strict=True)}
    if (left := feature_width - sum(widths.values())) < 1:
        raise InputError(
            f"features of {feature_width} numbers: {encoder.__name__} takes {widths} as the last of them, and features"
        )
    return {FEATURES: left, **widths}


def _words_of(config: ModelConfig) -> nn.Module:
    if config.backbone is not None:
        return GivenWords()
    if config.sentence is None:
        return WordVectors(config.vocabulary_size, config.word_width)
    return SentenceEncoder(config.vocabulary_size, config.word_width, config.sentence)


def _vision_of(config: ModelConfig) -> Vision | None:
    """The vision network, without its weights; None for a model that takes features."""
    if not config.picture_size:
        return None
    if config.backbone is not None:
        return FrozenNetwork(Camp(config.backbone))
    if config.vision == "small":
        return VisionNet(config.feature_width, config.picture_size)
    if config.vision == "efficientnet-lite0":
        return EfficientNetLite(config.picture_size)
    if config.vision == "onnx":
        return OnnxVision()
    raise InputError(f"vision {brief(config.vision)}: expected small, efficientnet-lite0 or onnx")
