"""Ask a running server from Python: which pictures fit a text, and where the network looked in the best of them.

python -m examples.serve.search "a large blue star left of a large pink star"
"""

from __future__ import annotations

import os
from typing import Annotated

import numpy as np
import typer

from camp_sdk.client import Client
from camp_sdk.terminal import run_command


def main(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    url: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    top_k: Annotated[int, typer.Option(help="Most pictures.", min=1)] = 5,
) -> None:
    """Print the pictures that fit a text best. A key of the server is read from CAMP_KEY."""
    with Client(url, os.environ.get("CAMP_KEY")) as client:
        matches = client.rank(query, top_k)
        for match in matches:
            print(f"{match.rank}  {match.score:.3f}  {match.key}  {dict(match.metadata or {})}")
        if matches and matches[0].key and client.info().explains:
            found = client.explain(query, matches[0].key)
            for word, regions in zip(found.words, found.to_words.T, strict=True):
                print(f"{word}: region {int(np.argmax(regions))}, {regions.max():.0%}")


if __name__ == "__main__":
    run_command(main)
