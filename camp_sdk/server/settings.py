"""The settings of `camp serve`, and the checks that need more than one of them."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from pathlib import Path

from camp_sdk.first_pass import passes_of
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

BATCH_PAIRS = 2048
MAX_BODY_BYTES = 20 << 20
TIME_LIMIT_S, DRAIN_S, SHARD_LIMIT_S = 30.0, 1.0, 10.0
LOG_FORMATS = ("line", "json")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d+)?")  # as browsers send it


@dataclass(frozen=True)
class Settings:
    """What a server serves, and how.

    Args:
        bundle: The bundle's folder.
        index: The index that is searched, or
        gallery: the gallery, or
        parts: the folder of the parts of an index; exactly one of the three.
        ann: Whether shortlists are chosen with the approximate search of the index.
        host: The address to listen at.
        port: The port to listen at; 0 takes a free one.
        root_path: The path under which a reverse proxy shows the server, such as "/search".
        keys: A file of keys for reading; None for none.
        write_keys: A file of keys for writing; None for none: nobody can write.
        without_keys: Listen at an address that others reach, although there are no keys.
        allow_origin: Origins of other sites whose pages may use the server.
        allow_host: Names in the header ``Host`` that are taken besides those of this machine, without keys.
        allow_fetch: Hosts from which pictures are fetched by URL.
        pictures: The folder that keeps uploaded pictures; None keeps only what was encoded.
        picture_root: Folders below which the pictures of items may lie, besides those of the index and of uploads.
        max_body: The largest body of a request, in bytes.
        max_megapixels: Pictures with more megapixels are not decoded.
        batch_pairs: The most pairs that are scored in one batch of requests.
        max_waiting_pairs: The most pairs that may wait and be scored; None for about a second of work, but at
            least eight requests.
        time_limit: How long a request may take, in seconds.
        shard_limit: How long a shard of a cluster may take, in seconds; later, answers are without its parts.
        drain: How long the server goes on after SIGTERM, not ready, before it ends, in seconds.
        log_format: "line" or "json".
        backend: As `Retriever` takes it.
        precision: As `Retriever` takes it; "int8" searches in two passes, the second in float32.
        threads: As `Retriever` takes it.
        memory_budget: As `Retriever` takes it.
        shards: The number of shards that the parts are divided among.
        shards_app: The application of Ray Serve whose deployments are the shards; None for this process.

    Raises:
        InputError: They do not fit together.
    """

    bundle: Path
    index: Path | None = None
    gallery: Path | None = None
    parts: Path | None = None
    ann: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    keys: Path | None = None
    write_keys: Path | None = None
    without_keys: bool = False
    allow_origin: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    allow_fetch: tuple[str, ...] = ()
    pictures: Path | None = None
    picture_root: tuple[Path, ...] = ()
    max_body: int = MAX_BODY_BYTES
    max_megapixels: float = MAX_MEGAPIXELS
    batch_pairs: int = BATCH_PAIRS
    max_waiting_pairs: int | None = None
    time_limit: float = TIME_LIMIT_S
    shard_limit: float = SHARD_LIMIT_S
    drain: float = DRAIN_S
    log_format: str = "line"
    backend: str = "auto"
    precision: str = "float32"
    threads: int | None = None
    memory_budget: int | None = None
    shards: int = 1
    shards_app: str | None = None

    def __post_init__(self) -> None:
        self._check_corpus()
        if self.log_format not in LOG_FORMATS:
            raise InputError(f"`log_format` is {brief(self.log_format)}: expected one of {', '.join(LOG_FORMATS)}")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise InputError(f"`root_path` is {brief(self.root_path)}: expected a path such as /search")
        for name in ("time_limit", "drain"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"`{name}` is {getattr(self, name)}: expected a number of seconds")
        for origin in self.allow_origin:
            if not ORIGIN.fullmatch(origin):
                raise InputError(f"`allow_origin` is {brief(origin)}: expected a site such as https://shop.example")
        if not (self.is_local or self.keys or self.without_keys):
            raise InputError(
                f"`host` is {brief(self.host)}, which others may reach: give a file of `keys`, or `without_keys` if "
                "everybody who reaches it may search"
            )

    def _check_corpus(self) -> None:
        if [self.index, self.gallery, self.parts].count(None) != 2:
            raise InputError("give either `index`, `gallery` or `parts`")
        if self.ann and self.index is None:
            raise InputError("`ann` is for an `index`: galleries and parts are searched exactly")
        if self.parts is not None and passes_of(self.precision).first:
            raise InputError(f"`precision` is {brief(self.precision)}: parts are searched in one pass")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False
