"""Pictures by URL: only of hosts that the settings name, at public addresses, without redirects, and bounded."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from camp_sdk.server.problems import Problem

FETCH_S = 10.0
CHUNK_BYTES = 1 << 16
PORTS = {"http": 80, "https": 443}


@dataclass
class Spent:
    """What a request has fetched: all of its files together have one limit of bytes, and one of time."""

    bytes: int = 0
    ends: float = field(default_factory=lambda: time.monotonic() + FETCH_S)

    def check_time(self) -> None:
        """Raise a Problem if it takes too long."""
        if time.monotonic() > self.ends:
            _fail(f"the pictures of URLs cannot be fetched within {FETCH_S:g} s")


class Fetcher:
    """Fetches pictures.

    Args:
        hosts: The hosts that are allowed, as HOST or HOST:PORT; without a port, the usual ones.
        max_bytes: The most bytes of all files of a request.
    """

    def __init__(self, hosts: Sequence[str], max_bytes: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes

    def fetch(self, url: str, spent: Spent) -> bytes:
        """The file at a URL.

        Args:
            url: The URL.
            spent: What the request has fetched, to which this file is added.

        Raises:
            Problem: It is not fetched (422), cannot be (502), or is too large with those before it (413).
        """
        parts, port = self._allowed(url)
        spent.check_time()
        address = _public_address(parts.hostname or "", port)
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        try:
            with closing(_connection(parts, port, address)) as connection:
                connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "camp-sdk"})
                return self._body(connection.getresponse(), spent)
        except (OSError, http.client.HTTPException, ValueError):
            _fail("the picture cannot be fetched")

    def _allowed(self, url: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme.lower()]
        except (ValueError, KeyError):
            raise Problem(422, "the picture's URL is not one of http: or https:") from None
        host = (parts.hostname or "").lower()
        usual = port == PORTS[parts.scheme.lower()]
        allowed = f"{host}:{port}" in self._hosts or (usual and host in self._hosts)
        if not allowed or parts.username is not None or not (url.isascii() and url.isprintable() and " " not in url):
            raise Problem(422, "pictures of this URL are not fetched here: expected a data: URL, or base64")
        return parts, port

    def _body(self, response: http.client.HTTPResponse, spent: Spent) -> bytes:
        if response.status != http.HTTPStatus.OK:  # a redirect might lead anywhere
            _fail(f"the picture cannot be fetched: status {response.status}")
        found = bytearray()
        while chunk := response.read1(CHUNK_BYTES):
            found += chunk
            spent.bytes += len(chunk)
            if spent.bytes > self._max_bytes:
                raise Problem(413, f"the pictures of URLs have more than {self._max_bytes} bytes")
            spent.check_time()
        return bytes(found)


def _fail(detail: str) -> NoReturn:
    raise Problem(502, detail)


def _public_address(host: str, port: int) -> str:
    """An address of a host, checked: the connection is made to this one, whatever the name stands for a moment later.

    Raises:
        Problem: It has none, or one that is not public.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        _fail("the host of the picture's URL is not known")
    if not found or not all(map(is_public, found)):
        raise Problem(422, "the host of the picture's URL has an address that is not public")
    return sorted(found)[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the public network, and not of this machine or those around it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is not None and not is_public(str(inner)):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _connection(parts: SplitResult, port: int, address: str) -> http.client.HTTPConnection:
    """A connection to an address, with the name of the host in the request, and in the certificate that is checked."""
    host = parts.hostname or ""
    made: http.client.HTTPConnection
    if parts.scheme.lower() == "http":
        made = http.client.HTTPConnection(host, port, timeout=FETCH_S)
        made.sock = socket.create_connection((address, port), FETCH_S)
        return made
    made = http.client.HTTPSConnection(host, port, timeout=FETCH_S)
    plain = socket.create_connection((address, port), FETCH_S)
    try:
        made.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise
    return made
