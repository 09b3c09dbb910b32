"""Draw docs/images/ranking.png: the answer of README's first lines, from what `make demo` left in build/demo.

python docs/images/make_ranking.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from camp_sdk import Retriever

DEMO = Path("build/demo")
QUERY = "a large blue star left of a large pink star"
FILE = Path(__file__).with_name("ranking.png")


def draw(file: Path = FILE, demo: Path = DEMO) -> None:
    """Rank the demo's test pictures and draw the best five."""
    with Retriever(demo / "bundle") as retriever:
        gallery = retriever.encode_images(sorted((demo / "data/test").glob("*.png")))
        matches = retriever.rank(QUERY, gallery, top_k=5)
    figure = Figure(figsize=(8, 2.1), layout="constrained", facecolor="white")
    figure.suptitle(f"“{QUERY}”", fontsize=11)
    for match, axes in zip(matches, figure.subplots(1, len(matches)), strict=True):
        with Image.open(str(match.document)) as picture:
            axes.imshow(picture)
        axes.set_title(f"{match.rank}.  {match.score:.3f}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    draw()
