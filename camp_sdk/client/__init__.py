"""A client of `camp serve`: the calls of `Retriever` and `Index`, over HTTP.

    from camp_sdk.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for match in client.rank("two dogs run on a beach", top_k=5):
            print(match.rank, match.key, match.score)

`TritonRanker` does the same with a Triton server that has a repository of `camp export-triton`.

It is not part of `camp_sdk` itself, because it needs the extra `client`, or `triton`.
"""

from camp_sdk.client.answers import ModelInfo, Reloaded
from camp_sdk.client.clients import AsyncClient, Client
from camp_sdk.client.triton import TritonRanker

__all__ = ["AsyncClient", "Client", "ModelInfo", "Reloaded", "TritonRanker"]
