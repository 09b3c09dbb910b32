"""camp-sdk: rank pictures by text and texts by picture with CAMP, without PyTorch.

    from camp_sdk import Retriever

    retriever = Retriever("bundle/")
    gallery = retriever.encode_images(images)
    for match in retriever.rank("two dogs run on a beach", gallery, top_k=5):
        print(match.rank, match.corpus_id, match.score)

Every error that the package raises on purpose is a `CampError`.
"""

from camp_sdk.data import Split, load_split
from camp_sdk.evaluation import Evaluation, evaluate
from camp_sdk.gallery import Gallery
from camp_sdk.index.items import Added, IndexInfo, IndexItem
from camp_sdk.index.living import Index
from camp_sdk.metrics import Direction, Metrics, evaluate_matrix
from camp_sdk.progress import progress_bar
from camp_sdk.results import Explanation, Match, Ranking, Skipped
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BackendError, BundleError, BusyError, CampError, InputError, MissingExtraError

__version__: str

__all__ = [
    "Added",
    "BackendError",
    "Bundle",
    "BundleError",
    "BusyError",
    "CampError",
    "Direction",
    "Evaluation",
    "Explanation",
    "Gallery",
    "Index",
    "IndexInfo",
    "IndexItem",
    "InputError",
    "Match",
    "Metrics",
    "MissingExtraError",
    "Ranking",
    "Retriever",
    "Skipped",
    "Split",
    "evaluate",
    "evaluate_matrix",
    "load_split",
    "progress_bar",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        # Read on demand: importing importlib.metadata takes a tenth of the time of `import numpy`.
        from importlib.metadata import version

        return version("camp-sdk")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
