"""The ways to score pairs on a GPU that are compared: PyTorch, ONNX Runtime's CUDA, TensorRT and TensorRT-RTX.

Each is opened once, on the scorer of a variant, and then given cases. All read the same tensors: those that the encoders
keep of each side, maps that are folded into them included. What a machine lacks fails to open, and says why.
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
from gpu_measure import Block, Timer, Way, wall_s
from numpy.typing import NDArray
from pairs import EXACT_PAIRS, REGIONS, exact_logits

from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.errors import BackendError
from camp_sdk.runtime.manifest import GraphSpec
from camp_sdk.runtime.scoring import PairScorer, feeds_of
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine, built_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tensorrt.plans import LIBRARIES

EAGER, COMPILED = "pytorch eager float16", "pytorch compiled float16"
GRAPHS = ", CUDA graphs"
# A context of 1,024 x 16 takes 7 GB (TensorRT-RTX 1.7, d = 1024), and eight may be open at once.
LARGE_GPU_BYTES = 60 << 30


@dataclass(frozen=True)
class Case:
    """What every way is given: tensors of the scorer in float32, images [I, ...] and texts [T, ...], and float64's logits
    of the first of them, exact [i, t]."""

    images: Arrays
    texts: Arrays
    exact: NDArray[Any]


Opened = Callable[[Case], Way]


@torch.no_grad()
def encode(model: Camp, origin: Origin, features: NDArray[np.float32], captions: list[str]) -> Case:
    """Both sides by PyTorch's encoders, which are no part of what is compared."""
    tokens = origin.open_tokenizer().encode(captions)
    ids, lengths, pixels = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths), torch.from_numpy(features)
    few, some = EXACT_PAIRS
    V, T = model.image_encoder(pixels[:few]), model.text_encoder(ids, lengths)
    images, texts = model.encode_images(pixels), model.encode_texts(ids, lengths)
    exact = exact_logits(origin.model.variant, model.scorer.state_dict(), V, T[:some], lengths[:some])
    return Case({n: t.numpy() for n, t in images.items()}, {n: t.numpy() for n, t in texts.items()}, exact)


def openers_of(model: Camp, bundle: Bundle, limits: Limits, stack: ExitStack) -> dict[str, Callable[[], Opened]]:
    """What opens each way, by its name; engines are closed with the stack."""

    def engine(open_one: Callable[[], Engine], precision: str) -> Opened:
        spec = bundle.manifest.graphs_in(precision)["scorer"]
        return partial(engine_way, stack.enter_context(open_one()), spec)

    scorer = copy.deepcopy(model.scorer)
    openers: dict[str, Callable[[], Opened]] = {
        EAGER: lambda: partial(torch_way, on_gpu(scorer), limits=limits),
        COMPILED: lambda: partial(torch_way, torch.compile(on_gpu(scorer), dynamic=True), limits=limits),
    }
    for precision in ("float32", "float16"):
        open_one = partial(open_engine, bundle, "scorer", "onnxruntime-cuda", precision=precision)
        openers[f"onnxruntime-cuda {precision}"] = partial(engine, open_one, precision)
    for backend, cuda_graphs in itertools.product(LIBRARIES, (False, True)):
        open_one = partial(open_built, bundle, "scorer", backend, limits, cuda_graphs)
        openers[f"{backend} float16{GRAPHS * cuda_graphs}"] = partial(engine, open_one, "float16")
    return openers


def limits_for(total_bytes: int) -> Limits:
    """What TensorRT is to build for on a GPU of so much memory, and how much PyTorch is given at once."""
    return Limits(1024 if total_bytes > LARGE_GPU_BYTES else 256, 16, max_words=32, max_regions=REGIONS)


def open_built(bundle: Bundle, graph: str, backend: str, limits: Limits, cuda_graphs: bool = False) -> Engine:
    """A float16 graph on TensorRT or TensorRT-RTX; the engine is built unless an earlier run did."""
    order = EngineOrder(bundle, graph, "float16", here_of(backend), limits)
    if built_engine(order) is None:
        build_engine(order)
    return open_engine(bundle, graph, backend, precision="float16", cuda_graphs=cuda_graphs)


def engine_way(engine: Engine, spec: GraphSpec, case: Case) -> Way:
    """An engine of ours, in the blocks and by the callers that it likes, with both sides in device memory; the logits come
    back to the host."""
    scorer = PairScorer(engine, spec.inputs)
    held: Mapping[str, Any] = engine.hold(feeds_of(spec.inputs, case.images | case.texts))
    assert engine.blocks is not None
    most_images, most_texts = engine.blocks

    def parts(side: str, count: int, most: int) -> list[tuple[slice, Mapping[str, Any]]]:
        places = [slice(start, min(start + most, count)) for start in range(0, count, most)]
        return [(place, {n: a[place] for n, a in held.items() if n.startswith(f"{side}.")}) for place in places]

    def score(block: Block) -> NDArray[Any]:
        texts, images = block
        pairs = itertools.product(parts("text", texts, most_texts), parts("image", images, most_images))
        meetings = (((image[0], text[0]), image[1], text[1]) for text, image in pairs)
        logits = np.empty((images, texts), np.float32)
        for where, found in scorer.run_each(meetings, engine.callers):
            logits[where] = found
        return logits

    return Way(score, wall_s)


def on_gpu(scorer: torch.nn.Module) -> torch.nn.Module:
    """A scorer in half precision on the GPU. Raises BackendError if this PyTorch has none."""
    require_torch_cuda()
    return scorer.half().to("cuda")


def require_torch_cuda() -> None:
    """Raise BackendError unless this PyTorch uses the GPU."""
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise BackendError(f"PyTorch {torch.__version__}, built {built}, finds no GPU")


def forget_torch() -> None:
    """Give back what PyTorch keeps of what it ran before, in memory and of compiled code."""
    torch.compiler.reset()
    torch.cuda.empty_cache()


def torch_way(
    scorer: Callable[..., torch.Tensor], case: Case, limits: Limits, device: str = "cuda", timer: Timer | None = None
) -> Way:
    """The scorer's module, with both sides on the device in half precision; at most `limits` are scored in one call."""

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

    return Way(score, timer or event_s, lambda logits: logits.float().cpu().numpy())


def parts_of(tensors: dict[str, torch.Tensor], count: int, most: int) -> list[dict[str, torch.Tensor]]:
    """The first ``count`` items of each tensor, at most so many at a time."""
    return [{n: t[k : min(k + most, count)] for n, t in tensors.items()} for k in range(0, count, most)]


def event_s(call: Callable[[], object]) -> float:
    """Seconds of a call on the GPU, between two CUDA events of PyTorch's stream."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # so torch has it
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
