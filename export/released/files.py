"""Reads the checkpoints and vocabularies of the released research code as data. Nothing in them is executed.

A checkpoint is a dict saved by torch: `model` = [image, text and scorer state], `opt` (an `easydict.EasyDict`),
`epoch`, `best_rsum`, `Eiters`. A vocabulary is a pickled object of a class `Vocabulary`, or JSON with the same keys.
"""

from __future__ import annotations

import codecs
import io
import json
import pickle
import pickletools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camp_sdk.export.network.checkpoint import EASYDICT, first_line, load_plain
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.pickle_steps import check_pickle
from camp_sdk.export.network.pickles import is_plain
from camp_sdk.export.network.released import RELEASED
from camp_sdk.export.network.vocabulary import SPECIALS
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

States = dict[str, dict[str, Tensor]]

PARTS = {"image": "image_encoder", "text": "text_encoder", "scorer": "scorer"}  # released name: name in `Camp`
VOCABULARY_BYTES_LIMIT = 64 << 20
# With any other value of these options, the network is none of the four that are supported.
FIXED_OPTIONS = {
    "no_imgnorm": True,
    "no_txtnorm": True,
    "bi_gru": True,
    "num_layers": 1,
    "self_attention": False,
    "use_abs": False,
}


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A released checkpoint that passed every check.

    Args:
        config: its configuration.
        weights: its weights, under the names of `Camp`.
        training: how it was trained, as far as the file says: epoch, best_rsum and a few options.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    training: dict[str, Any]


def read_checkpoint(path: Path) -> ReleasedCheckpoint:
    """Read a checkpoint of the released code, with or without the `module.` prefix of training on several GPUs.

    Raises:
        BundleError: the file is truncated, holds anything but tensors and plain values, or is from another model. Of
            tensors that are missing, left over, or of the wrong shape, the message lists every one.
    """
    raw = _load(path)
    found = raw.get("opt")
    options: dict[str, Any] = found if isinstance(found, dict) else {}
    states = _states(path, raw.get("model"))
    config = _config(path, states, options)
    _check_weights(path, config, states)
    weights = {f"{PARTS[part]}.{name}": t.float() for part, state in states.items() for name, t in state.items()}
    kept = ("batch_size", "learning_rate", "margin", "loss_func", "max_violation", "data_name")
    fields = {"epoch": raw.get("epoch"), "best_rsum": raw.get("best_rsum")} | {name: options.get(name) for name in kept}
    plain = {name: value for name, value in fields.items() if isinstance(value, (int, float, str))}
    return ReleasedCheckpoint(config, weights, {"released_code": config.variant} | plain)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a checkpoint of the released code (.pth.tar)")
    # The options are a dict of a class that may not be installed: an ordered dict stands in for it.
    loaded = load_plain(path, [EASYDICT])
    if not isinstance(loaded, dict):
        raise BundleError(f"{path} holds a {type(loaded).__name__}: expected a dict with model, opt and epoch")
    return loaded


def _states(path: Path, model: Any) -> States:
    listed = isinstance(model, list) and len(model) == len(PARTS) and all(isinstance(state, dict) for state in model)
    if not listed or not all(is_plain(t) for state in model for t in state.values()):
        raise BundleError(f"{path} is not a CAMP checkpoint: expected model = [image, text, scorer], tensors by name")
    states: States = {part: {} for part in PARTS}
    for part, state in zip(PARTS, model, strict=True):
        for name, tensor in state.items():
            bare = str(name).removeprefix("module.")
            if bare in states[part]:
                raise BundleError(f"{path} holds {part} {bare} twice, with and without the prefix module.")
            states[part][bare] = tensor
    return states


def _config(path: Path, states: States, options: Mapping[str, Any]) -> ModelConfig:
    expected = f"expected one of {', '.join(RELEASED)}"
    variant = options.get("measure", _variant_of(states))
    if not isinstance(variant, str) or variant not in RELEASED:
        raise BundleError(f"{path} has the scorer {brief(variant)}: {expected}")
    for name, value in FIXED_OPTIONS.items():
        found = options.get(name, value)
        if not isinstance(found, int) or found != value:
            raise BundleError(f"{path} was trained with {name} = {brief(found)}: a different network, expected {value}")
    width, feature_width = _shape(states["image"].get("fc.weight"), options, "embed_size", "img_dim")
    vocabulary_size, word_width = _shape(states["text"].get("embed.weight"), options, "vocab_size", "word_dim")
    return ModelConfig(vocabulary_size, variant, width, feature_width, word_width, global_vectors=False)


def _variant_of(states: States) -> str | None:
    """The variant that has tensors of these names, for a checkpoint without options."""
    for variant, scorer in RELEASED.items():
        with torch.device("meta"):
            if scorer(1).state_dict().keys() == states["scorer"].keys():
                return variant
    return None


def _shape(tensor: Tensor | None, options: Mapping[str, Any], *names: str) -> tuple[int, int]:
    """The two sizes of a matrix. If it is missing, the options give them, so that the other tensors are checked."""
    if tensor is not None and tensor.ndim == 2 and tensor.numel():
        return tensor.shape[0], tensor.shape[1]
    rows, columns = (options.get(name) for name in names)
    return tuple(size if isinstance(size, int) and 0 < size < 1 << 24 else 1 for size in (rows, columns))  # type: ignore[return-value]  # two


def _check_weights(path: Path, config: ModelConfig, states: States) -> None:
    """Raise BundleError with every tensor that is missing, left over, of the wrong shape, or not finite."""
    with torch.device("meta"):
        whole = Camp(config)
    faults = []
    for part, module in PARTS.items():
        expected, found = whole.get_submodule(module).state_dict(), states[part]
        faults += [f"{part} {name} is missing" for name in expected if name not in found]
        faults += [f"{part} {name} is not of this model" for name in found if name not in expected]
        for name in expected.keys() & found.keys():
            shape, wanted = tuple(found[name].shape), tuple(expected[name].shape)
            if shape != wanted:
                faults.append(f"{part} {name} is {shape}, expected {wanted}")
            elif not (found[name].is_floating_point() and found[name].float().isfinite().all()):
                faults.append(f"{part} {name} holds data other than finite numbers")
    if faults:
        raise BundleError(f"{path} does not hold the weights of {config.variant}: {'; '.join(sorted(faults))}")


# The opcodes of dicts, lists, text, whole numbers and an object of a class. Tuples, floats and calls need others.
OPCODES = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT DICT EMPTY_LIST LIST EMPTY_TUPLE SETITEM SETITEMS APPEND APPENDS "  # noqa: SIM905  # easier to read
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING "
    "INT BININT BININT1 BININT2 LONG LONG1 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL NEWOBJ BUILD".split()
)


class _VocabularyUnpickler(pickle.Unpickler):
    """Loads objects of the class `Vocabulary` from module `vocab` or `__main__`, and refuses every other name."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        # A new class each time, because a pickle can set attributes of classes, too.
        self.vocabulary = type("Vocabulary", (), {})

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in (("vocab", "Vocabulary"), ("__main__", "Vocabulary")):
            return self.vocabulary
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data: refused")

    def attributes(self) -> Any:
        """The attributes of a pickled `Vocabulary`; anything else is returned as it is."""
        loaded = self.load()
        return vars(loaded) if type(loaded) is self.vocabulary else loaded


def _unpickle(raw: bytes) -> Any:
    check_pickle(raw)
    found = Counter(op.name for op, _, _ in pickletools.genops(raw))
    if not found.keys() - OPCODES:
        return _VocabularyUnpickler(raw).attributes()
    if found.total() < 10_000:  # more could nest so deep that Python crashes
        _VocabularyUnpickler(raw).attributes()  # if the file calls a function, this error names it
    strange = ", ".join(sorted(found.keys() - OPCODES))
    raise pickle.UnpicklingError(f"it holds data other than dicts, lists, text and whole numbers ({strange})")


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read a vocabulary file.

    Args:
        path: the pickled object, or JSON with the same keys (`word2idx`, `idx2word`, `idx`).

    Returns:
        The words and their indices, 0 to n - 1, with `<pad>`, `<start>`, `<end>` and `<unk>` first.

    Raises:
        BundleError: the file is truncated, asks for any class but `Vocabulary`, or contradicts itself.
    """
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a vocabulary, pickled or JSON")
    if path.stat().st_size > VOCABULARY_BYTES_LIMIT:
        raise BundleError(f"{path} has {path.stat().st_size} bytes, which is too large for a vocabulary")
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        attributes = json.loads(raw) if raw.lstrip()[:1] == b"{" else _unpickle(raw)
    except Exception as error:  # a broken pickle raises whatever its opcodes run into
        raise BundleError(f"{path} cannot be read as a vocabulary: {first_line(error)}") from None
    return _check_vocabulary(path, attributes)


def _check_vocabulary(path: Path, attributes: Any) -> dict[str, int]:
    words = attributes.get("word2idx") if isinstance(attributes, dict) else None
    typed = isinstance(words, dict) and all(_is_word(w) and type(i) is int for w, i in words.items())
    if not isinstance(words, dict) or not typed:
        raise BundleError(
            f"{path} is not a vocabulary: expected word2idx, a dict of words (in valid Unicode) to whole numbers"
        )
    if sorted(words.values()) != list(range(len(words))):
        raise BundleError(f"{path}: its {len(words)} words are not numbered 0 to {len(words) - 1}, each once")
    if found := [
        f"{word} at {brief(words.get(word))}" for index, word in enumerate(SPECIALS) if words.get(word) != index
    ]:
        raise BundleError(f"{path}: expected {', '.join(SPECIALS)} at 0 to 3, found {', '.join(found)}")
    if len(words) == len(SPECIALS):
        raise BundleError(f"{path} holds no words besides {', '.join(SPECIALS)}")
    reverse = attributes.get("idx2word")
    if reverse is not None and not _is_reverse(reverse, words):
        raise BundleError(f"{path}: idx2word is not the reverse of word2idx")
    count = attributes.get("idx", len(words))
    if count != len(words):
        raise BundleError(f"{path}: idx is {brief(count)}, expected the number of words, {len(words)}")
    return words


def _is_word(word: Any) -> bool:
    """Whether this is valid Unicode text: JSON and pickles may hold half of a surrogate pair."""
    return type(word) is str and word.encode(errors="replace").decode() == word


def _is_reverse(reverse: Any, words: dict[str, int]) -> bool:
    """Whether idx2word is the reverse of word2idx. Its keys may be text, as in JSON, and it may be a list."""
    if isinstance(reverse, list):
        reverse = dict(enumerate(reverse))
    if not isinstance(reverse, dict) or len(reverse) != len(words):
        return False
    return all(reverse.get(index, reverse.get(str(index))) == word for word, index in words.items())
