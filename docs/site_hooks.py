"""Hooks of the documentation site: figures that lie outside docs/, linked as they are from a page in the clone."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FIGURES = ("benchmarks/results/pairs.png",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures to the site, under images/."""
    for figure in FIGURES:
        files.append(File.generated(config, site_path(figure), abs_src_path=str(ROOT / figure)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links of a page to the copies in the site."""
    for figure in FIGURES:
        markdown = markdown.replace(f"../{figure}", site_path(figure))
    return markdown


def site_path(figure: str) -> str:
    """Where the site has a figure."""
    return f"images/{Path(figure).name}"
