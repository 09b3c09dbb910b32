"""The folder of a published model: given, or fetched from Hugging Face at a revision that is recorded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.export.network.towers import EXTRA
from camp_sdk.runtime.errors import BundleError, InputError, MissingExtraError
from camp_sdk.runtime.messages import brief

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # either describes the pixels
TOKENIZER_CONFIG = "tokenizer_config.json"
FILES = (CONFIG, WEIGHTS, PREPROCESSOR, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
JSON_LIMIT = 1 << 20
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Source:
    """A published model.

    Args:
        folder: where its files are.
        name: the repository, or the folder's own name.
        revision: the commit that was fetched; None for a folder.
    """

    folder: Path
    name: str
    revision: str | None = None

    def read_json(self, name: str, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """The content of a JSON file.

        Args:
            name: the file's name.
            limit: the most bytes of it.

        Raises:
            BundleError: there is no such file, or it is not a JSON object.
        """
        path = self.folder / name
        if not path.is_file():
            raise BundleError(f"{path} not found: expected a folder with {', '.join(FILES[:3])} and {TOKENIZER}")
        try:
            if path.stat().st_size > limit:
                raise ValueError(f"it has more than {limit} bytes")
            raw = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(raw, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read as JSON: {error}") from None
        return raw

    def preprocessing(self) -> dict[str, Any]:
        """How pictures become pixels, as the published model says.

        Raises:
            BundleError: neither file is there, or it is not a JSON object.
        """
        if (self.folder / PREPROCESSOR).is_file() or not (self.folder / PROCESSOR).is_file():
            return self.read_json(PREPROCESSOR)
        inner = self.read_json(PROCESSOR).get("image_processor")
        if not isinstance(inner, dict):
            raise BundleError(f"{self.folder / PROCESSOR} has no image_processor: expected {PREPROCESSOR}")
        return inner


def open_source(source: str, revision: str | None = None) -> Source:
    """The folder of a published model.

    Args:
        source: a folder, or a repository such as openai/clip-vit-base-patch32, which is fetched.
        revision: the branch, tag or commit of the repository; by default its main branch.

    Raises:
        InputError: there is no such folder or repository, or it cannot be fetched.
        MissingExtraError: a repository is named, and huggingface_hub is not installed.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise InputError(f"`revision` {brief(revision)}: {source} is a folder, which has none")
        return Source(Path(source), Path(source).resolve().name)
    if not REPOSITORY.fullmatch(source) or Path(source).exists():
        raise InputError(f"{source} is no folder: expected a model's folder, or a repository such as owner/name")
    return _fetched(source, revision)


def _fetched(repository: str, revision: str | None) -> Source:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", EXTRA) from None
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # of the connection, the service or the disk: a dozen types of three packages
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise InputError(
            f"{repository} cannot be fetched: download {', '.join(FILES[:3])} and {TOKENIZER} from "
            f"https://huggingface.co/{repository}/tree/{revision or 'main'} into a folder, and name it ({reason})"
        ) from None
    return Source(folder, repository, folder.name)  # the hub's cache names a snapshot by its commit
