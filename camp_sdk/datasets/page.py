"""The page of `camp data check --html`: one file, which needs no other and loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from camp_sdk.datasets.report import BROKEN, NOTES, DataReport, Sample, SplitReport, summary_rows
from camp_sdk.pictures import read_picture
from camp_sdk.runtime.files import followed, write_aside
from camp_sdk.runtime.messages import visible

SIDE = 160  # pixels
MAX_FINDINGS = 100  # of each kind
MAX_CAPTION = 300  # characters
MAX_CAPTIONS = 20  # of a sample

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>camp-sdk: data set $data</title>
<style>
  :root { --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --paper: #fff; --ground: #f6f7f9; --accent: #3257d6; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e8ebf2; --soft: #98a2b3; --line: #2f3746; --paper: #1a202c; --ground: #12161f; --accent: #8aa4ff; }
  }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
  main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
  h1 { font-size: 28px; margin: 0 0 4px; overflow-wrap: anywhere; }
  h2 { font-size: 20px; margin: 40px 0 12px; }
  .soft { color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; background: var(--paper); font-variant-numeric: tabular-nums; }
  table, th, td { border: 1px solid var(--line); }
  th, td { padding: 6px 10px; text-align: right; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  .bars td:last-child { width: 70%; text-align: left; }
  .bar { background: var(--accent); height: 12px; min-width: 1px; }
  li { overflow-wrap: anywhere; }
  .samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; }
  .sample { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
  .sample img { display: block; width: 160px; height: 160px; }
  .sample ul { padding-left: 20px; margin: 6px 0 0; }
</style>
</head>
<body><main>
<h1>$data</h1>
<p class="soft">$root</p>
<h2>Splits</h2>
<div class="wide"><table>$splits</table></div>
<h2>Findings</h2>
$findings
<h2>Words in captions</h2>
$words
$samples
</main></body>
</html>
""")


def write_page(file: Path, report: DataReport) -> None:
    """Write the page, with thumbnails of the samples.

    Args:
        file: The HTML file to write.
        report: What it shows.

    Raises:
        OSError: The file cannot be written.
    """
    rows = summary_rows(report.splits)
    values = {
        "data": _text(report.data),
        "root": "" if report.root is None else f"pictures: {_text(report.root)}",
        "splits": _rows("th", rows[:1]) + _rows("td", rows[1:]),
        "findings": _findings(report),
        "words": "".join(map(_words, report.splits)),
        "samples": "".join(_samples(split.name, report.samples) for split in report.splits),
    }
    with write_aside(followed(file)) as aside:
        aside.write_text(PAGE.substitute(values), encoding="utf-8")


def _text(value: object) -> str:
    return escape(visible(str(value)))


def _rows(kind: str, rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<{kind}>{_text(cell)}</{kind}>' for cell in row)}</tr>\n" for row in rows)


def _findings(report: DataReport) -> str:
    parts = [_finding(kind, report.findings[kind]) for kind in (*BROKEN, *NOTES) if report.findings[kind]]
    return "".join(parts) or "<p>Nothing is broken, and nothing is there twice.</p>"


def _finding(kind: str, lines: list[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>\n" for line in lines[:MAX_FINDINGS])
    more = f"<li>and {len(lines) - MAX_FINDINGS:,} more</li>" if len(lines) > MAX_FINDINGS else ""
    return f"<details><summary>{_text(kind)}: {len(lines):,}</summary><ul>{items}{more}</ul></details>\n"


def _words(split: SplitReport) -> str:
    most = max((count for _, count in split.histogram), default=0)
    rows = "".join(
        f'<tr><td>{label}</td><td>{count:,}</td><td><div class="bar" style="width: {100 * count / most:.1f}%"></div>'
        "</td></tr>\n"
        for label, count in split.histogram
    )
    return f'<h3>{_text(split.name)}</h3><table class="bars">{rows}</table>\n'


def _samples(split: str, samples: list[Sample]) -> str:
    own = [sample for sample in samples if sample.split == split]
    cards = "".join(map(_card, own))
    return f'<h2>Samples of {_text(split)}</h2><div class="samples">{cards}</div>\n' if own else ""


def _card(sample: Sample) -> str:
    picture = f'<img src="{_thumbnail(sample.path)}" alt="">' if sample.path else ""
    captions = "".join(f"<li>{_text(caption[:MAX_CAPTION])}</li>" for caption in sample.captions[:MAX_CAPTIONS])
    return f'<div class="sample">{picture}<div class="soft">{_text(sample.name)}</div><ul>{captions}</ul></div>\n'


def _thumbnail(path: Path) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(read_picture(path, SIDE, SIDE, str(path), "letterbox")).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
