"""Small files that stand for much: checkpoints and vocabularies whose loading, or whose messages, would never end."""

from __future__ import annotations

import pickle
import resource
import signal
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camp_sdk import BundleError
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.export.network import pickles
from camp_sdk.export.network.checkpoint import KEY, load_checkpoint, load_plain
from camp_sdk.export.network.pickle_steps import check_pickle
from camp_sdk.export.network.pickles import check_values
from camp_sdk.export.released.files import read_checkpoint, read_vocabulary
from camp_sdk.runtime.messages import brief
from tests.helpers.tiny import save_tiny_checkpoint

FOLDER = Path(__file__).parent / "released"
Checkpoints = Callable[[str, bool], Path]


def laughs(kind: type[Any] = list) -> Any:
    """A container of two, which are the same container of two, and so on: 2 ** 40 values in 40 containers."""
    value: Any = kind(("ha", "ha"))
    for _ in range(40):
        value = kind((value, value))
    return value


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


# Messages


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        (1 << 300, "a whole number of 301 bits"),
        ("dog", "'dog'"),
        ("x" * 100, f"'{'x' * 77}'..."),
        (b"dog", "b'dog'"),
        ([1, [2, [3]]], "[1, [2, a list]]"),
        ((1,), "(1,)"),
        ([0] * 9, "[0, 0, 0, 0, ...]"),
        ({"a": 1}, "a dict"),
        (OrderedDict(), "an OrderedDict"),
        (torch.ones(3), "a Tensor"),
    ],
)
def test_a_message_shows_little_of_a_value(value: Any, shown: str) -> None:
    assert brief(value) == shown


@pytest.mark.parametrize(
    "value", [laughs(), laughs(tuple), deep(100_000), [0] * 1_000_000, "x" * (1 << 24)], ids="abcde"
)
def test_a_message_is_short_whatever_the_value(value: Any) -> None:
    assert len(brief(value)) < 150


# Values


@pytest.mark.parametrize("value", [laughs(), laughs(tuple), {"a": [laughs()]}, deep(65), deep(100_000)], ids="abcde")
def test_values_that_stand_for_many_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"more than 1048576 values, or lists nested over 64 deep"):
        check_values(value, 1 << 30)


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = [[]]
    value[0].append({"a": value})
    with pytest.raises(ValueError, match="holds itself"):
        check_values(value, 1 << 30)


def test_what_checkpoints_hold_is_accepted() -> None:
    shared, weight = [1, 2], torch.ones(3, 4)
    value = {"a": [shared, shared, ()], "w": weight, "rows": [weight[0], weight[1:].T], "none": torch.ones(0)}
    check_values(value, weight.nbytes)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(1000), torch.eye(3).to_sparse(), torch.ones(3, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_that_store_too_little_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="not dense, or has more numbers than are stored"):
        check_values({"deep": [tensor]}, 1 << 30)


def test_tensors_larger_than_their_file_are_refused() -> None:
    with pytest.raises(ValueError, match="its tensors take more bytes than the 100 of the file"):
        check_values([torch.ones(20), torch.ones(20)], 100)


# Pickles


def test_a_number_in_the_memo_costs_nothing(tmp_path: Path) -> None:
    for opcode in (b"r\x00F\xc3\x23", b"p600000000\n"):
        (tmp_path / "v.pkl").write_bytes(b"\x80\x02]" + opcode + b".")
        with pytest.raises(BundleError, match=r"v\.pkl cannot be read .*: it keeps a value under the number 600000000"):
            read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_numbers_in_the_memo_that_pickle_writes_are_accepted(protocol: int) -> None:
    check_pickle(pickle.dumps([[str(k), {"a": (k, k)}] for k in range(1000)], protocol))


def test_tuples_that_stand_for_many_are_not_loaded(tmp_path: Path) -> None:
    """As keys of a dict they would be walked while they are loaded, and while the test pickles them."""
    content = b"\x80\x02}(K\x01K\x01\x86" + b"2\x86" * 40 + b"K\x01u."
    for protocol_2 in (content, content.replace(b"}(", b"(").replace(b"K\x01u.", b"t.")):
        (tmp_path / "v.pkl").write_bytes(protocol_2)
        with pytest.raises(BundleError, match="it holds a tuple of more than 1048576 values"):
            read_vocabulary(tmp_path / "v.pkl")


# Checkpoints


def released() -> dict[str, Any]:
    with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):  # type: ignore[list-item]  # a pair
        loaded: dict[str, Any] = torch.load(FOLDER / "gate_fusion_new.pth.tar", weights_only=True)
    return loaded


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["measure", "no_imgnorm", "embed_size", "batch_size"])
def test_options_of_a_released_checkpoint_that_stand_for_many(tmp_path: Path, where: str, legacy: bool) -> None:
    raw = released()
    raw["opt"][where] = laughs()
    torch.save(raw, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BundleError, match=r"c\.pth\.tar cannot be read as a checkpoint: it holds more than"):
        read_checkpoint(tmp_path / "c.pth.tar")


@pytest.mark.parametrize("where", ["model", "pixels", "training", "tokenizer", "example_captions", "format"])
def test_parts_of_a_checkpoint_that_stand_for_many(tmp_path: Path, checkpoints: Checkpoints, where: str) -> None:
    raw: dict[str, Any] = torch.load(checkpoints("scalar", True), weights_only=True)
    raw[KEY][where] = {"height": laughs()} if where in ("model", "pixels", "training") else laughs()
    torch.save(raw, tmp_path / "c.ckpt")
    with pytest.raises(BundleError, match=r"c\.ckpt cannot be read as a checkpoint: it holds more than"):
        load_checkpoint(tmp_path / "c.ckpt")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("format", torch.ones(3)),
        ("format", True),
        ("tokenizer", 5),
        ("example_images", [1]),
        ("example_captions", [1]),
        ("training", [1]),
        ("pixels", [1]),
        ("model", {"vocabulary_size": 1 << 40}),
        ("model", {"width": 1 << 40}),
        ("model", {"width": "8"}),
        ("model", {"picture_size": 1 << 40}),
        ("model", {"variant": ["paper"]}),
        (
            "model",
            {"words": "minilm", "sentence": dict.fromkeys(("layers", "heads", "inner_width", "positions"), 1 << 40)},
        ),
    ],
)
def test_parts_of_another_kind_or_size_are_refused(tmp_path: Path, part: str, value: Any) -> None:
    """Before a network of the sizes that a file claims is made."""
    raw: dict[str, Any] = torch.load(save_tiny_checkpoint(tmp_path / "c.ckpt", "paper", False), weights_only=True)
    if part == "model":
        value = raw[KEY]["model"] | value
        value["sentence"] = value["sentence"] and value["sentence"] | {"epsilon": 1e-5}
    raw[KEY][part] = value
    torch.save(raw, tmp_path / "c.ckpt")
    with pytest.raises(BundleError, match=r"does not fit its own configuration|is not a checkpoint of camp train"):
        load_checkpoint(tmp_path / "c.ckpt")


def packed_again(source: Path, target: Path, change: Callable[[str, bytes], bytes], method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))


def test_a_checkpoint_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    source, target = FOLDER / "gate_fusion.pth.tar", tmp_path / "c.pth.tar"
    packed_again(source, target, lambda name, content: content, zipfile.ZIP_STORED)
    assert read_checkpoint(target).config.variant == "gate_fusion"
    packed_again(source, target, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match=r"its member '.*' is compressed, which torch never does"):
        read_checkpoint(target)


def test_members_that_declare_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    """Several entries of the directory may lead to the same bytes."""
    target = tmp_path / "c.ckpt"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a/data/0", bytes(1 << 16))
        archive.filelist += archive.filelist * 50
    with pytest.raises(BundleError, match="its members declare more bytes than the"):
        load_plain(target)


def test_a_checkpoint_may_not_ask_for_memory(tmp_path: Path) -> None:
    for content in (
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02c__builtin__\nbytearray\nK\x01\x85R.",
    ):
        with zipfile.ZipFile(tmp_path / "c.ckpt", "w") as archive:
            archive.writestr("c/data.pkl", content)
            archive.writestr("c/version", "3\n")
        with pytest.raises(BundleError, match="which is not data: refused"):
            load_plain(tmp_path / "c.ckpt")


def test_a_legacy_file_that_declares_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(8)}, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "c.ckpt").read_bytes()
    huge = b"\x8a\x06" + (1 << 38).to_bytes(6, "little")
    assert content.count(b"K\x08N") == 1
    (tmp_path / "c.ckpt").write_bytes(content.replace(b"K\x08N", huge + b"N"))
    with pytest.raises(BundleError, match=r"c\.ckpt cannot be read as a checkpoint"):
        load_plain(tmp_path / "c.ckpt")


def test_a_tar_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storages").write_bytes(bytes(1 << 16))
    with tarfile.open(tmp_path / "c.pth.tar", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(BundleError, match=r"c\.pth\.tar cannot be read as a checkpoint"):
        load_plain(tmp_path / "c.pth.tar")


def test_a_sound_checkpoint_loads_in_either_format(tmp_path: Path, checkpoints: Checkpoints) -> None:
    raw = torch.load(checkpoints("scalar", True), weights_only=True)
    torch.save(raw, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "c.ckpt")[1].model == load_checkpoint(checkpoints("scalar", True))[1].model


# Files that are made to load slowly


def of_pickle(folder: Path, content: bytes, name: str = "c/data.pkl") -> Path:
    with zipfile.ZipFile(folder / "c.ckpt", "w") as archive:
        archive.writestr(name, content)
        archive.writestr("c/version", "3\n")
    return folder / "c.ckpt"


@pytest.mark.parametrize("name", ["c/data.PKL", "c/Data.pkl", "c/constants.pkl", "data.pkl", "c/c/data.pkl"])
def test_members_that_torch_does_not_write_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=f"it has the member '{name}', which torch never writes"):
        load_plain(of_pickle(tmp_path, b"\x80\x02].", name))


@pytest.mark.parametrize("folder", ["c", "C"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_another_may_stand_in_for_are_refused(tmp_path: Path, folder: str) -> None:
    path = of_pickle(tmp_path, b"\x80\x02].")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02].")
    with pytest.raises(BundleError, match="it has a member twice, or members in several folders"):
        load_plain(path)


def test_a_list_is_visited_once_however_often_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    before = pickles._parts
    monkeypatch.setattr(pickles, "_parts", lambda item: seen.append(item) or before(item))
    shared = [0] * 100
    check_values([[shared, shared], [shared] * 10, shared], 1 << 30)
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["_codecs encode", "builtins set", "collections Counter", "torch UntypedStorage"])
def test_functions_that_checkpoints_do_not_need_are_refused(tmp_path: Path, name: str) -> None:
    content = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n)R."
    with pytest.raises(BundleError, match=f"it asks for {name.replace(' ', '.')}, which is not data: refused$"):
        load_plain(of_pickle(tmp_path, content))


DICT = b"collections\nOrderedDict\n"
SLOW = {
    "long numbers": (b"}\x8a\x09" + b"\1" * 9 + b"K\0s", "it holds a whole number of 65 bits, over 64"),
    "negative": (b"}\x8a\x09" + b"\0" * 8 + b"\xfeK\0s", "it holds a whole number of 66 bits, over 64"),
    "as text": (b"}L99999999999999999999L\nK\0s", "it holds a whole number of 67 bits, over 64"),
    "floats": (b"}G" + bytes(8) + b"K\0s", "a key of its dicts is no text or whole number"),
    "tuples": (b"}K\1\x85K\0s", "a key of its dicts is no text or whole number"),
    "scattered": (
        b"}(" + b"".join(b"M" + (k * 3 + 1).to_bytes(2, "little") + b"K\0" for k in range((1 << 14) + 1)) + b"u",
        "over 16384 whole numbers are keys of its dicts, not in order",
    ),
    "fetched": (b"(" + b"K\0" * 5000 + b"tq\0" + b"h\x000" * 4000, "it repeats lists, dicts or tuples of more than"),
    "changed": (b"]q\0h\0K\0a", "it changes a list, dict or object after it was used"),
    "pairs": (b"c" + DICT + b"]]K\1aa\x85R", "it makes an ordered dict of something other than pairs of a name"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_would_load_slowly_is_refused(tmp_path: Path, name: str) -> None:
    content, message = SLOW[name]
    with pytest.raises(BundleError, match=message):
        load_plain(of_pickle(tmp_path, b"\x80\x02" + content + b"."))


def test_keys_in_order_and_the_pairs_of_python_2_are_accepted(tmp_path: Path) -> None:
    raw = dict.fromkeys(range(1 << 15), "x")
    for protocol in (0, 2):
        check_pickle(pickle.dumps(raw, protocol))
    content = b"\x80\x02c" + DICT + b"](](X\1\0\0\0aK\1ee\x85R."
    assert load_plain(of_pickle(tmp_path, content)) == OrderedDict(a=1)


# A full disk


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on the size of files")
def test_a_full_disk_is_one_error_that_names_the_target(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1][1]))
    try:
        with pytest.raises(OSError, match=r"run/best\.ckpt"):
            import_checkpoint(FOLDER / "gate_fusion.pth.tar", FOLDER / "vocab.pkl", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    assert not (tmp_path / "run").exists()
