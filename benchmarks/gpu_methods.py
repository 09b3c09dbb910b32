"""The scoring methods that the GPU benchmark compares: PyTorch, ONNX Runtime with CUDA, TensorRT and TensorRT-RTX.

Each method is opened once, on the scorer of a variant, and then receives cases. All read the same tensors: those that
the encoders keep of each side, with the maps that are folded into them. A method that the machine lacks fails to open,
with the reason.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_measure import Block, Method, Timer, wall_s
from numpy.typing import NDArray
from pairs_networks import EXACT_PAIRS, REGIONS, exact_logits

from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.errors import BackendError
from camp_sdk.runtime.scoring import PairScorer, feeds_of
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine, built_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tensorrt.plans import LIBRARIES

EAGER, COMPILED = "pytorch eager float16", "pytorch compiled float16"
GRAPHS = ", CUDA graphs"
# A context for 1,024 images x 16 texts takes 7 GB (TensorRT-RTX 1.7, d = 1024), and eight may be open at once.
LARGE_GPU_BYTES = 60 << 30


@dataclass(frozen=True)
class Case:
    """The input of every method.

    Args:
        images: the scorer's image tensors, float32 [I, ...].
        texts: the scorer's text tensors, float32 [T, ...].
        exact: logits of the first images and texts in float64, [i, t].
    """

    images: Arrays
    texts: Arrays
    exact: NDArray[Any]


Opened = Callable[[Case], Method]


@torch.no_grad()
def encode(model: Camp, origin: Origin, features: NDArray[np.float32], captions: list[str]) -> Case:
    """Encode both sides with PyTorch; the comparison does not include the encoders."""
    tokens = origin.open_tokenizer().encode(captions)
    ids, lengths, regions = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths), torch.from_numpy(features)
    exact_images, exact_texts = EXACT_PAIRS
    V, T = model.image_encoder(regions[:exact_images]), model.text_encoder(ids, lengths)
    images, texts = model.encode_images(regions), model.encode_texts(ids, lengths)
    exact = exact_logits(origin.model.variant, model.scorer.state_dict(), V, T[:exact_texts], lengths[:exact_texts])
    return Case({n: t.numpy() for n, t in images.items()}, {n: t.numpy() for n, t in texts.items()}, exact)


def openers_of(model: Camp, bundle: Bundle, limits: Limits, stack: ExitStack) -> dict[str, Callable[[], Opened]]:
    """The functions that open each method, by its name.

    Args:
        model: the network whose scorer PyTorch runs.
        bundle: the bundle of the same network.
        limits: the sizes that TensorRT engines are built for, and the most that PyTorch scores in one call.
        stack: closes the engines when it is left.
    """

    def engine(open_one: Callable[[], Engine], precision: str) -> Opened:
        spec = bundle.manifest.graphs_in(precision)["scorer"]
        return partial(engine_method, stack.enter_context(open_one()), spec)

    scorer = copy.deepcopy(model.scorer)
    openers: dict[str, Callable[[], Opened]] = {
        EAGER: lambda: partial(torch_method, on_gpu(scorer), limits=limits),
        COMPILED: lambda: partial(torch_method, torch.compile(on_gpu(scorer), dynamic=True), limits=limits),
    }
    for precision in ("float32", "float16"):
        open_one = partial(open_engine, bundle, "scorer", "onnxruntime-cuda", precision=precision)
        openers[f"onnxruntime-cuda {precision}"] = partial(engine, open_one, precision)
    for backend, cuda_graphs in itertools.product(LIBRARIES, (False, True)):
        open_one = partial(open_built, bundle, "scorer", backend, limits, cuda_graphs)
        openers[f"{backend} float16{GRAPHS * cuda_graphs}"] = partial(engine, open_one, "float16")
    return openers


def limits_for(total_bytes: int) -> Limits:
    """The sizes that TensorRT builds for on a GPU of ``total_bytes``, and the most that PyTorch scores in one call."""
    return Limits(1024 if total_bytes > LARGE_GPU_BYTES else 256, 16, max_words=32, max_regions=REGIONS)


def open_built(bundle: Bundle, graph: str, backend: str, limits: Limits, cuda_graphs: bool = False) -> Engine:
    """Open a float16 graph on TensorRT or TensorRT-RTX; builds the engine unless an earlier run built it."""
    order = EngineOrder(bundle, graph, "float16", here_of(backend), limits)
    if built_engine(order) is None:
        build_engine(order)
    return open_engine(bundle, graph, backend, precision="float16", cuda_graphs=cuda_graphs)


def engine_method(engine: Engine, spec: GraphSpec, case: Case) -> Method:
    """A method that scores with one of the SDK's engines.

    It uses the engine's preferred block size and number of callers. Both sides are in device memory, and the logits are
    copied to the host.
    """
    scorer = PairScorer(engine, spec.inputs)
    held: Mapping[str, Any] = engine.hold(feeds_of(spec.inputs, case.images | case.texts))
    assert engine.blocks is not None
    max_images, max_texts = engine.blocks

    def parts(side: str, count: int, size: int) -> list[tuple[slice, Mapping[str, Any]]]:
        places = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return [(place, {n: a[place] for n, a in held.items() if n.startswith(f"{side}.")}) for place in places]

    def score(block: Block) -> NDArray[Any]:
        texts, images = block
        pairs = itertools.product(parts("text", texts, max_texts), parts("image", images, max_images))
        blocks = (((image[0], text[0]), image[1], text[1]) for text, image in pairs)
        logits = np.empty((images, texts), np.float32)
        for where, found in scorer.run_each(blocks, engine.callers):
            logits[where] = found
        return logits

    return Method(score, wall_s)


def on_gpu(scorer: torch.nn.Module) -> torch.nn.Module:
    """Move a scorer to the GPU in half precision.

    Raises:
        BackendError: this PyTorch finds no GPU.
    """
    require_torch_cuda()
    return scorer.half().to("cuda")


def require_torch_cuda() -> None:
    """Check that this PyTorch can use a GPU.

    Raises:
        BackendError: it finds none.
    """
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise BackendError(f"PyTorch {torch.__version__}, built {built}, finds no GPU")


def forget_torch() -> None:
    """Free the GPU memory and the compiled code that PyTorch caches from earlier runs."""
    torch.compiler.reset()
    torch.cuda.empty_cache()


def torch_method(
    scorer: Callable[..., torch.Tensor], case: Case, limits: Limits, device: str = "cuda", timer: Timer | None = None
) -> Method:
    """A method that scores with the PyTorch module.

    Args:
        scorer: the module, or its compiled form.
        case: the input; both sides are moved to the device in half precision.
        limits: the most images and texts of one call.
        device: the PyTorch device.
        timer: returns the seconds of a call; CUDA events by default.
    """

    def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
        found = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return {name: t.half() if t.is_floating_point() else t for name, t in found.items()}

    image, text = tensors(case.images), tensors(case.texts)

    @torch.no_grad()
    def score(block: Block) -> torch.Tensor:
        texts, images = block
        columns = [
            torch.cat([scorer(i, t) for i in parts_of(image, images, limits.max_images)])
            for t in parts_of(text, texts, limits.max_texts)
        ]
        return torch.cat(columns, dim=1)

    return Method(score, timer or event_s, lambda logits: logits.float().cpu().numpy())


def parts_of(tensors: dict[str, torch.Tensor], count: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The first ``count`` items of each tensor, in parts of at most ``size`` items."""
    return [{n: t[k : min(k + size, count)] for n, t in tensors.items()} for k in range(0, count, size)]


def event_s(call: Callable[[], object]) -> float:
    """Seconds of a call on the GPU, measured between two CUDA events on PyTorch's stream."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
