"""Published models whose files are odd or hostile: one line, which names the file, and nothing is written."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camp_sdk import BundleError
from camp_sdk.export.import_pretrained import import_pretrained
from camp_sdk.export.network.checkpoint import load_checkpoint
from tests.helpers.command import Camp

pytest.importorskip("transformers")
from tests.helpers import published  # needs transformers

Change = Callable[[Path], Any]
HUGE = 1 << 23  # of a width, for which matrices would take terabytes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    published.write_clip(folder / "clip")
    published.write_siglip(folder / "siglip", second=False)
    return folder


def settings(name: str, part: str = "", **values: Any) -> Change:
    """Change values of a JSON file, or of one part of it."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / name).read_text(encoding="utf-8"))
        (raw[part] if part else raw).update(values)
        (folder / name).write_text(json.dumps(raw))

    return change


def content(name: str, data: bytes) -> Change:
    """Another content of a file."""
    return lambda folder: (folder / name).write_bytes(data)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the weights."""

    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return write


def in_type(kind: torch.dtype) -> Change:
    return weights(lambda found: found.update({name: value.to(kind) for name, value in found.items()}))


CONFIG, PIXELS, WORDS = "config.json", "preprocessor_config.json", "tokenizer_config.json"
REFUSED: dict[str, tuple[str, Change, str]] = {
    "heads that do not divide": ("clip", settings(CONFIG, "text_config", num_attention_heads=7), "not a multiple"),
    "heads of a SigLIP": ("siglip", settings(CONFIG, "text_config", num_attention_heads=7), "expected a multiple"),
    "a network of terabytes": ("clip", settings(CONFIG, "text_config", hidden_size=HUGE), r"expected \(563, 8388608\)"),
    "layers of terabytes": ("siglip", settings(CONFIG, "vision_config", intermediate_size=HUGE), "does not fit"),
    "a tower that is a number": ("clip", settings(CONFIG, text_config=5), r"config\.json does not describe a model"),
    "a size that is text": ("clip", settings(CONFIG, "vision_config", image_size="32"), "does not describe a model"),
    "a type that is not one": ("clip", settings(CONFIG, dtype="float77"), "does not describe a model of clip"),
    "labels": ("siglip", settings(CONFIG, id2label=5), "does not describe a model of siglip"),
    "a factor that is text": ("clip", settings(PIXELS, rescale_factor="x"), "rescale_factor 'x': expected 1/255"),
    "a factor of NaN": ("clip", settings(PIXELS, rescale_factor=float("nan")), "rescale_factor nan: expected 1/255"),
    "a filter in a list": ("clip", settings(PIXELS, resample=[3]), r"resample \[3\]: expected 2 .* or 3"),
    "a mean beyond floats": ("siglip", settings(PIXELS, image_mean=[10**400] * 3), "too large"),
    "padding in a list": ("siglip", settings(WORDS, pad_token=["x"]), r"tokenizer_config\.json has pad_token \['x'\]"),
    "words that are a list": ("siglip", content("tokenizer.json", b"[]"), r"tokenizer\.json cannot be read as JSON"),
    "no words": ("siglip", content("tokenizer.json", b"{}"), r"tokenizer\.json is not a tokenizer .* \(KeyError"),
    "whole numbers": ("clip", in_type(torch.int32), "torch.int32: expected floats of 16, 32 or 64 bits"),
    "complex numbers": ("clip", in_type(torch.complex64), "torch.complex64: expected floats"),
    "a factor beyond floats": ("clip", weights(lambda w: w["logit_scale"].fill_(1000)), "logit_scale is 1000.0, expec"),
    "a long name": ("clip", weights(lambda w: w.update({"x\n" * 9999: torch.zeros(3)})), r"x'\.\.\. is not of this"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(camp: Camp, models: Path, tmp_path: Path, what: str) -> None:
    kind, change, message = REFUSED[what]
    change(shutil.copytree(models / kind, tmp_path / "model"))
    with pytest.raises(BundleError, match=message) as caught:
        import_pretrained(str(tmp_path / "model"), tmp_path / "run")
    assert len(str(caught.value)) < 1000
    done = camp("import", "clip", tmp_path / "model", "--output", tmp_path / "run")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("values", [{"auto_map": {"AutoModel": "a/b--c.D"}}, {"_attn_implementation": "some/kernels"}])
def test_what_a_file_asks_to_load_is_not_loaded(models: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    settings(CONFIG, **values)(shutil.copytree(models / "clip", tmp_path / "model"))
    path = import_pretrained(str(tmp_path / "model"), tmp_path / "run")
    expected = load_checkpoint(import_pretrained(str(models / "clip"), tmp_path / "plain"))[0].state_dict()
    found = load_checkpoint(path)[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_markers_that_are_not_used_are_no_warning(models: Path, tmp_path: Path) -> None:
    """Published models of SigLIP name markers beyond their vocabulary, and `transformers` warns of them."""
    from transformers import SiglipConfig

    settings(CONFIG, "text_config", bos_token_id=49411)(shutil.copytree(models / "siglip", tmp_path / "model"))
    said: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("transformers")
    handler.emit = said.append  # type: ignore[method-assign]  # a list takes the records
    logger.addHandler(handler)
    try:
        import_pretrained(str(tmp_path / "model"), tmp_path / "run")
        assert said == []
        settings(CONFIG, "text_config", bos_token_id=49412)(tmp_path / "model")  # each warning comes once
        SiglipConfig.from_dict(published.settings(tmp_path / "model", CONFIG))
        assert said  # as loud as before
    finally:
        logger.removeHandler(handler)


def test_a_failure_while_writing_leaves_nothing(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*best\.ckpt'"):
        import_pretrained(str(models / "clip"), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        import_pretrained(str(models / "clip"), tmp_path / "file" / "run")


def test_a_checkpoint_whose_heads_do_not_divide(models: Path, tmp_path: Path) -> None:
    raw = torch.load(import_pretrained(str(models / "clip"), tmp_path / "run"), weights_only=True)
    raw["camp"]["model"]["towers"]["text"]["num_attention_heads"] = 7
    torch.save(raw, tmp_path / "best.ckpt")
    with pytest.raises(BundleError, match="hidden_size is 24, num_attention_heads 7: expected a multiple"):
        load_checkpoint(tmp_path / "best.ckpt")
