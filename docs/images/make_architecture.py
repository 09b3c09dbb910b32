"""Draw docs/images/architecture.svg: the three graphs, the cross product, and who runs where.

python docs/images/make_architecture.py
"""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("architecture.svg")
WIDTH, HEIGHT = 960, 430
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2430; text-anchor: middle }
  .title { font-weight: 600; font-size: 16px }
  .small { font-size: 12.5px; fill: #59606e }
  .where { font-size: 13px; font-weight: 600; fill: #59606e; text-anchor: start }
  rect { rx: 8; stroke-width: 1.5 }
  .zone { fill: #f6f7f9; stroke: #d5d9e0 }
  .data { fill: #ffffff; stroke: #b6bcc8 }
  .graph { fill: #e3ecff; stroke: #4a74d6 }
  .score { fill: #fff0d6; stroke: #d6912f }
  path { stroke: #59606e; stroke-width: 1.6; fill: none; marker-end: url(#tip) }
  .ground { fill: #ffffff; stroke: none }
  path.tip { fill: #59606e; stroke: none; marker-end: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ef }
    .small, .where { fill: #a9b1bf }
    .ground { fill: #14171d }
    .zone { fill: #1b1f27; stroke: #39404d }
    .data { fill: #242a35; stroke: #566073 }
    .graph { fill: #1d2e57; stroke: #6f95ee }
    .score { fill: #4a3413; stroke: #e0a44a }
    path { stroke: #a9b1bf }
    path.tip { fill: #a9b1bf }
  }
"""


def box(x: int, y: int, width: int, height: int, kind: str, title: str, *lines: str) -> str:
    """A box with a title and smaller lines below it, all centred."""
    middle, first = x + width / 2, y + height / 2 + 5 - 9 * len(lines)
    texts = [f'<text class="title" x="{middle}" y="{first}">{title}</text>']
    texts += [f'<text class="small" x="{middle}" y="{first + 18 * k}">{line}</text>' for k, line in enumerate(lines, 1)]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>' + "".join(texts)


def zone(x: int, y: int, width: int, height: int, title: str) -> str:
    """A background with its title at the upper left."""
    label = f'<text class="where" x="{x + 14}" y="{y + 24}">{title}</text>'
    return f'<rect class="zone" x="{x}" y="{y}" width="{width}" height="{height}"/>{label}'


def arrow(*points: tuple[int, int]) -> str:
    """A line through some points, with a tip at the last."""
    return f'<path d="M {" L ".join(f"{x} {y}" for x, y in points)}"/>'


def architecture() -> str:
    """The whole picture as SVG text."""
    parts = [
        zone(16, 16, 210, 398, "Workstation (PyTorch)"),
        zone(246, 16, 698, 398, "Device (numpy and one inference engine)"),
        box(36, 70, 170, 56, "data", "camp train", "checkpoint"),
        box(36, 180, 170, 74, "data", "camp export", "ONNX graphs, checked", "against PyTorch"),
        box(36, 312, 170, 70, "data", "bundle/", "graphs, tokenizer,", "manifest"),
        arrow((121, 126), (121, 178)),
        arrow((121, 254), (121, 310)),
        arrow((206, 347), (244, 347)),
        box(266, 62, 130, 70, "data", "pictures", "or region features"),
        box(436, 62, 170, 70, "graph", "image graph", "once per image"),
        box(266, 292, 130, 70, "data", "texts", "words or queries"),
        box(436, 292, 170, 70, "graph", "text graph", "once per text"),
        box(436, 158, 170, 52, "data", "gallery", "saved, memory-mapped"),
        box(652, 146, 150, 132, "score", "scorer graph", "cross product:", "I images x T texts,", "block by block"),
        box(836, 176, 92, 72, "data", "logits", "[I, T]"),
        arrow((396, 97), (434, 97)),
        arrow((521, 132), (521, 156)),
        arrow((606, 184), (650, 184)),
        arrow((396, 327), (434, 327)),
        arrow((606, 327), (628, 327), (628, 240), (650, 240)),
        arrow((802, 212), (834, 212)),
    ]
    tip = '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<path class="tip" d="M 0 0 L 10 5 L 0 10 z"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    ground = f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>'
    title = "<title>Three graphs: image, text and scorer</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style><defs>{tip}</defs>", ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(architecture(), encoding="utf-8")
