"""A picture as files (SVG and PNG) and as an element of a page.

The same picture gives the same bytes: no date, no version, ids made of the content. In a page several pictures stand in one
document, so every id carries a hash of its picture; the ink takes the colour of the page's text and the paper that of the ground it
lies on (`--card`), so a dark page needs no second picture.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure

from mixsd.figures.style import INK, PAPER, context
from mixsd.storage import write_bytes, write_text

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_LARGEST = 1.6  # pixels to a point: a little more than on paper, as pages have larger text
_LINES = "stroke-linejoin: round; stroke-linecap: butt"
_FAMILIES = "'DejaVu Sans', Verdana, system-ui, sans-serif"  # alike in width, for readers without the first


def save(figure: Figure | None, stem: Path) -> list[Path]:
    """Write `stem.svg` and `stem.png`, and be done with the figure; returns their paths, none where there is no figure.

    Raises:
        UserError: the folder cannot be written.
    """
    if figure is None:
        return []
    stem = stem.expanduser()
    scalable, drawn = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_text(scalable, svg(figure))
    write_bytes(drawn, png(figure))
    figure.clear()
    return [scalable, drawn]


def svg(figure: Figure) -> str:
    """The figure as an SVG document on white ground."""
    root = _element(figure)
    root.set("style", _LINES)
    for place, (name, text) in enumerate(zip(("title", "desc"), _said(figure), strict=True)):
        node = ET.Element(f"{{{_SVG}}}{name}")
        node.text = text
        root.insert(place, node)
    root.insert(2, ET.Element(f"{{{_SVG}}}rect", {"width": "100%", "height": "100%", "style": f"fill: {PAPER}"}))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _text(root) + "\n"


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white ground."""
    written = io.BytesIO()
    with context(), _foreign_signs():
        figure.savefig(written, format="png", metadata={"Software": None}, facecolor=PAPER)
    return written.getvalue()


def inline(figure: Figure) -> str:
    """The figure as one `<svg>` element for a page: as wide as there is room for, not much more than its own width, in the page's colours."""
    root = _element(figure)
    wide = float(root.attrib.pop("width").removesuffix("pt")) * _LARGEST
    root.attrib.pop("height")
    for node in root.iter():
        for attribute in ("style", "fill"):  # a hatch has its ground as an attribute
            if own := node.get(attribute):
                node.set(attribute, own.replace(INK, "currentColor").replace(PAPER, f"var(--card, {PAPER})"))
    root.set("style", f"width: 100%; max-width: {wide:g}px; height: auto; {_LINES}")
    title, description = _said(figure)
    root.set("aria-label", f"{title}. {description}" if description else title)
    return _text(root)


def _element(figure: Figure) -> ET.Element:
    """What matplotlib draws, with ids of its own where anything points to them, and no style sheet."""
    written = io.BytesIO()
    with context(), _foreign_signs():
        figure.savefig(written, format="svg", metadata=_NO_METADATA)
    source = written.getvalue().decode()
    root = ET.fromstring(source)  # noqa: S314 - what matplotlib has just written
    own = hashlib.sha256(source.encode()).hexdigest()[:8]
    wanted = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'xlink:href="#([^"]+)"', source))
    for parent in list(root.iter()):
        for node in list(parent):
            # It would hold for the whole page.
            if node.tag == f"{{{_SVG}}}defs" and node.find(f"{{{_SVG}}}style") is not None:
                parent.remove(node)
    for node in root.iter():
        if (name := node.attrib.pop("id", None)) in wanted:
            node.set("id", f"{own}-{name}")
        if (name := node.get(f"{{{_XLINK}}}href")) is not None:
            node.set(f"{{{_XLINK}}}href", f"#{own}-{name.removeprefix('#')}")
        for attribute in ("clip-path", "style"):
            if (text := node.get(attribute)) is not None:
                node.set(attribute, text.replace("url(#", f"url(#{own}-").replace("'DejaVu Sans'", _FAMILIES))
    root.set("role", "img")
    return root


def _said(figure: Figure) -> tuple[str, str]:
    return getattr(figure, "title", "") or "Figure", getattr(figure, "description", "")


def _text(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode").strip()


@contextmanager
def _foreign_signs() -> Iterator[None]:
    """A sign that the font lacks is a box in the PNG, and the reader's own font's in the SVG; neither is worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield
