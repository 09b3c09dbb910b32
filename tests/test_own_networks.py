"""The extension point: networks of one's own by their names, from the command line, the caller or an entry point."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from camp_sdk import BundleError, InputError, Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network import networks
from camp_sdk.export.network.camp import PaperScorer
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.encoders import BidirectionalGRU, ImageEncoder
from camp_sdk.export.network.model import Camp, ModelConfig, image_inputs
from camp_sdk.export.network.networks import add_network, import_network, network_named
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
from camp_sdk.runtime.manifest import Manifest, read_manifest
from camp_sdk.runtime.selftest import self_test
from tests.helpers.command import Camp as CampCommand
from tests.helpers.networks import BoxEncoder, DeepEncoder, TwoTowers, WithEncoders
from tests.helpers.processes import run_blocked
from tests.helpers.tiny import CAPTIONS, save_tiny_checkpoint, tiny_model

BOXES = "tests.helpers.networks:WithEncoders"
DOCS = Path(__file__).parents[1] / "docs" / "networks.md"
TOWERS, BOXED = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)  # what the docs show


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that a test adds, and folders that it puts on the path, are gone after it."""
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Features of width 6 for a train and a dev split of eight images."""
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        np.save(tmp_path / f"{split}_ims.npy", rng.random((8, 3, 6), dtype=np.float32))
        captions = [f"thing {image} seen {k}" for image in range(8) for k in range(5)]
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return tmp_path


def entry_points_with(*entries: tuple[str, str]) -> object:
    """A stand-in for `importlib.metadata.entry_points` in an environment with these networks."""
    found = EntryPoints(EntryPoint(name, value, networks.ENTRY_POINTS) for name, value in entries)
    return lambda group: found.select(group=group)


# Names


def test_a_network_is_known_by_its_module_and_class() -> None:
    assert add_network(WithEncoders) == import_network(BOXES) == BOXES
    assert network_named(BOXES) is WithEncoders
    assert network_named("paper") is PaperScorer


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no_such_module_of_mine:Network", "`network` no_such_module_of_mine:Network: ModuleNotFoundError: No module"),
        ("tests.helpers.networks:Missing", "tests.helpers.networks has no Missing; expected my_package"),
        (
            "tests.helpers.networks:BoxEncoder",
            r"BoxEncoder: expected my_package\.my_module:MyNetwork, a subclass",
        ),
        ("tests.helpers.networks:cast", "`network` cast: expected my_package"),
        ("camp_sdk.export:Scorer", "`network` Scorer: expected my_package"),
        (":Network", "`network` ':Network': expected my_package"),
        (".mine:Network", "`network` '.mine:Network': expected my_package"),
        ("tests.helpers.networks:", "`network` 'tests.helpers.networks:': expected my_package"),
        ("nothing", "`variant` nothing: expected one of paper.*or give `network` my_package"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        import_network(name)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("x = (", r"SyntaxError: .*was never closed"),
        ("\n1 / 0\n", r"ZeroDivisionError: division by zero \(broken_here\.py, line 2\)"),
        ("import sys\nsys.exit(3)", r"SystemExit: 3 \(broken_here\.py, line 2\)"),
        ("raise ValueError('two\\nlines')", r"ValueError: two lines \(broken_here\.py, line 1\)"),
    ],
)
def test_a_module_that_cannot_be_imported(
    source: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(InputError, match=f"`network` broken_here:X: {error}"):
        import_network("broken_here:X")
    assert sys.path == before


class _Softmax(TwoTowers):
    activation = "softmax"


class _Raises(TwoTowers):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        raise KeyError("inside")


class _Reads(TwoTowers):
    """Reads values of what it makes, as networks of layers with rates of their own do."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]


def test_an_activation_that_the_runtime_lacks() -> None:
    with pytest.raises(InputError, match=r"_Softmax\.activation is 'softmax': expected one of"):
        add_network(_Softmax)


def test_an_error_of_a_networks_own_code_says_where_it_comes_from(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", add_network(TwoTowers), False)
    loaded = torch.load(checkpoint, weights_only=True)
    loaded["camp"]["model"]["variant"] = add_network(_Raises)
    torch.save(loaded, checkpoint)
    expected = r"test_own_networks:_Raises cannot be made: KeyError: 'inside' \(test_own_networks\.py"
    with pytest.raises(networks.NetworkError, match=expected):
        load_checkpoint(checkpoint)


def test_a_network_may_read_values_while_it_is_made(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", add_network(_Reads), False)
    assert load_checkpoint(checkpoint)[0].scorer.rates == pytest.approx([0, 0.05, 0.1])


def test_a_checkpoint_whose_network_is_no_name(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", "paper", False)
    loaded = torch.load(checkpoint, weights_only=True)
    loaded["camp"]["model"]["variant"] = [7]
    torch.save(loaded, checkpoint)
    with pytest.raises(BundleError, match=r"does not fit its own configuration: variant is \[7\], expected a name"):
        load_checkpoint(checkpoint)


def test_a_class_of_a_script_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoTowers, "__module__", "__main__")
    with pytest.raises(InputError, match="`network` TwoTowers: define it in a module that can be imported"):
        add_network(TwoTowers)


def test_installed_entry_points_are_found_by_name_and_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "entry_points", entry_points_with(("boxes", BOXES), ("lost", "no_such_module:X")))
    assert network_named("boxes") is network_named(BOXES) is WithEncoders
    assert import_network("boxes") == "boxes"
    with pytest.raises(InputError, match="lost, an entry point for no_such_module:X: ModuleNotFoundError: No"):
        network_named("lost")


# Checkpoints


def test_a_checkpoint_says_which_network_it_needs(tmp_path: Path) -> None:
    add_network(WithEncoders)
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", BOXES, False)
    assert type(load_checkpoint(checkpoint)[0].scorer) is WithEncoders
    del networks.NETWORKS[BOXES]
    with pytest.raises(InputError, match=rf"it\.ckpt needs the network '{BOXES}': give it as `network`"):
        load_checkpoint(checkpoint)
    add_network(WithEncoders)  # both are known, but the checkpoint holds the other
    with pytest.raises(InputError, match=f"`network` tests.helpers.networks:TwoTowers: .*holds the network {BOXES}"):
        export_bundle(checkpoint, tmp_path / "bundle", network="tests.helpers.networks:TwoTowers")
    assert not (tmp_path / "bundle").exists()


def test_nothing_is_imported_because_a_checkpoint_names_it(
    tmp_path: Path, camp: CampCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module lies in the current folder, and would leave a file if it were imported."""
    (tmp_path / "planted.py").write_text("open('ran', 'w')\n" + TOWERS)
    add_network(TwoTowers)
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", "tests.helpers.networks:TwoTowers", False)
    loaded = torch.load(checkpoint, weights_only=True)
    loaded["camp"]["model"]["variant"] = "planted:Towers"
    torch.save(loaded, checkpoint)
    monkeypatch.chdir(tmp_path)
    done = camp("export", "--checkpoint", "it.ckpt", "--output", "bundle")
    assert done.code == 1
    assert "it.ckpt needs the network 'planted:Towers': give it as --network" in done.err
    assert not (tmp_path / "ran").exists()


def test_the_command_line_trains_and_exports_a_network_of_the_current_folder(
    data: Path, camp: CampCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "mine").mkdir()
    (data / "mine" / "towers.py").write_text(TOWERS + BOXED)
    (data / "mine" / "__init__.py").write_text("from mine.towers import BoxedTowers\n")  # known by another name
    monkeypatch.chdir(data)
    sizes = ("--width", "8", "--word-width", "8", "--epochs", "1", "--batch-size", "8", "--min-count", "1")
    mine = ("--network", "mine:BoxedTowers")
    trained = camp("train", "--data", ".", *mine, "--output", "run", *sizes)
    assert trained.code == 0, trained.err
    monkeypatch.delitem(networks.NETWORKS, "mine.towers:BoxedTowers")
    exported = camp("export", "--checkpoint", "run/best.ckpt", *mine, "--output", "bundle")
    assert exported.code == 0, exported.err
    for module in ("mine", "mine.towers"):
        monkeypatch.delitem(sys.modules, module)
    assert read_manifest(data / "bundle" / "manifest.json").variant == "mine.towers:BoxedTowers"
    rank = "import numpy as np\nfrom camp_sdk import Retriever\nwith Retriever(sys.argv[1]) as r:\n"
    rank += "    print(r.score_matrix(np.load(sys.argv[2]), ['thing 1']).shape)"
    done = run_blocked(rank, data / "bundle", data / "dev_ims.npy")
    assert (done.stdout.strip(), done.stderr) == ("(8, 1)", "")


def test_network_and_variant_exclude_each_other(data: Path) -> None:
    config = TrainConfig(data, data / "run", "scalar", network=BOXES)
    with pytest.raises(InputError, match=f"`variant` scalar: give either it or `network` {BOXES}"):
        run_training(config)


@pytest.mark.parametrize("option", ["dropout", "word_dropout"])
def test_dropout_of_an_encoder_without_it(data: Path, option: str) -> None:
    config = TrainConfig(
        data, data / "run", network=BOXES, epochs=1, batch_size=8, width=8, devices="1", **{option: 0.5}
    )
    encoder = {"dropout": "BoxEncoder", "word_dropout": "DeepEncoder"}[option]
    with pytest.raises(InputError, match=rf"`{option}` 0\.5: {encoder} has no dropout"):
        run_training(config)


def test_options_of_camps_own_mlp_are_refused(data: Path) -> None:
    add_network(TwoTowers)
    config = TrainConfig(data, data / "run", "tests.helpers.networks:TwoTowers", begin_as_distance=True)
    with pytest.raises(InputError, match="`begin_as_distance`: not possible for tests"):
        run_training(config)


# Encoders


@pytest.fixture(scope="module")
def boxes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose image graph reads features of width 8, and boxes."""
    folder = tmp_path_factory.mktemp("boxes")
    add_network(WithEncoders)
    return export_bundle(save_tiny_checkpoint(folder / "it.ckpt", BOXES, False), folder / "bundle", ["float16"]).folder


@pytest.fixture
def manifest(boxes_bundle: Path) -> Manifest:
    return read_manifest(boxes_bundle / "manifest.json")


def test_boxes_are_a_second_input_of_the_image_graph(manifest: Manifest) -> None:
    inputs = {spec.name: spec.shape for spec in manifest.graphs["image"].inputs}
    assert inputs == {"features": ("I", "R", 8), "boxes": ("I", "R", 4)}
    assert manifest.feature_width == 12


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_boxes_are_the_last_columns_of_the_features(boxes_bundle: Path, backend: str) -> None:
    add_network(WithEncoders)
    model = tiny_model(BOXES).double()
    rows = np.random.default_rng(3).standard_normal((4, 6, 12), dtype=np.float32)
    with Retriever(boxes_bundle, backend) as retriever:
        found = retriever.score_matrix(rows, CAPTIONS, logits=True)
        tokens = retriever._tokenizer.encode(CAPTIONS)
        passed = self_test(retriever.bundle, backend, "float32")
    V = model.image_encoder(*(torch.from_numpy(part).double() for part in (rows[..., :8], rows[..., 8:])))
    T = model.text_encoder(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))
    mask = torch.arange(T.shape[1])[None] < torch.from_numpy(tokens.lengths)[:, None]
    with torch.no_grad():
        expected = model.scorer(model.scorer.image_side(V), model.scorer.text_side(T, mask))
    # Float32 sums of a few hundred products, of logits of a few units.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    assert passed.passed


def test_a_gru_anywhere_in_an_encoder_is_exported() -> None:
    add_network(WithEncoders)
    model = tiny_model(BOXES)
    assert isinstance(model.text_encoder, DeepEncoder)
    assert isinstance(model.text_encoder.inner["gru"], BidirectionalGRU)


class _Unsorted(ImageEncoder):
    inputs: ClassVar[Mapping[str, str]] = {"features": "I R D", "sizes": "I R 2", "boxes": "I R 4"}


class _Whole(ImageEncoder):
    inputs: ClassVar[Mapping[str, str]] = {"features": "I R D", "size": "I 2"}


class _Other(ImageEncoder):
    inputs: ClassVar[Mapping[str, str]] = {"boxes": "I R 4", "features": "I R D"}


class _Nothing(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features


def test_the_inputs_of_an_encoder_share_the_columns() -> None:
    assert image_inputs(BoxEncoder, 12) == {"features": 8, "boxes": 4}
    assert image_inputs(_Nothing, 12) == image_inputs(ImageEncoder, 12) == {"features": 12}
    with pytest.raises(InputError, match=r"features of 4 numbers: BoxEncoder takes \{'boxes': 4\} as the last"):
        image_inputs(BoxEncoder, 4)


@pytest.mark.parametrize("encoder", [_Unsorted, _Whole, _Other])
def test_inputs_that_cannot_be_columns(encoder: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=f"{encoder.__name__} declares the inputs .*: expected features, and others"):
        image_inputs(encoder, 12)


# Metadata


@pytest.mark.parametrize("folder", ["", "fp16/"])
def test_graphs_say_what_they_are(boxes_bundle: Path, manifest: Manifest, folder: str) -> None:
    graphs = manifest.graphs_in("float16" if folder else "float32")
    for role, graph in graphs.items():
        found = {entry.key: entry.value for entry in onnx.load(boxes_bundle / graph.file).metadata_props}
        axes = {spec.name: list(spec.shape) for spec in (*graph.inputs, *graph.outputs)}
        assert json.loads(found.pop("camp_sdk.axes")) == axes
        assert found == {"camp_sdk.bundle": "1", "camp_sdk.role": role, "camp_sdk.network": BOXES}


def test_the_configuration_names_an_unknown_network() -> None:
    with pytest.raises(InputError, match="`variant` papper: expected one of"):
        Camp(ModelConfig(10, "papper"))
