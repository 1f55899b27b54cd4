"""Structural formulas, drawn by RDKit in the ink of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

#: Width and height of a formula, in points.
TILE = (150, 125)


def drawing(smiles: Sequence[str], captions: Sequence[str], name: str, alt: str, columns: int = 4) -> str:
    """Formulas in rows as SVG source, the same bytes for the same strings.

    Args:
        smiles: what is drawn, strings that are molecules.
        captions: a few words under each.
        name: of the figure, unique on its page.
        alt: what the picture says, for readers who cannot see it.
        columns: formulas in a row.
    """
    from rdkit.Chem.Draw.rdMolDraw2D import MolDraw2DSVG

    source = _drawn(MolDraw2DSVG, smiles, captions, columns)
    source = source[source.index("<!-- END OF HEADER -->") :]
    # All plain lines are one path: RDKit says of each how it is drawn.
    line = r"<path class='[^']*' d='([^']*)' style='fill:none;[^']*stroke:#000000;[^']*' />\s*"
    lines, rest = re.sub(r"[\s,]+", " ", " ".join(re.findall(line, source))), re.sub(line, "", source)
    rest = re.sub(r" class='[^']*'|<!--.*?-->|</svg>", "", rest).replace("#000000", "currentColor")
    width, height = _size(smiles, columns)
    body = re.sub(r"\s*\n\s*", " ", rest.strip())
    head = f'<svg role="img" aria-label="{escape(alt, quote=True)}" data-itlib-figure="{name}" width="{width}pt"'
    frame = f'height="{height}pt" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"'
    return f'{head} {frame}><path fill="none" stroke="currentColor" stroke-width="1.3" d="{lines}"/>{body}</svg>'


def _size(smiles: Sequence[str], columns: int) -> tuple[int, int]:
    return TILE[0] * columns, TILE[1] * -(-len(smiles) // columns)


def _drawn(kind: Any, smiles: Sequence[str], captions: Sequence[str], columns: int) -> Any:
    """What one of RDKit's canvases leaves: text or bytes."""
    from rdkit import Chem

    canvas = kind(*_size(smiles, columns), *TILE)
    options = canvas.drawOptions()
    options.useBWAtomPalette()
    options.clearBackground, options.bondLineWidth, options.legendFontSize = kind.__name__ != "MolDraw2DSVG", 1.3, 13
    canvas.DrawMolecules([Chem.MolFromSmiles(text) for text in smiles], legends=list(captions))
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def bitmap(smiles: Sequence[str], captions: Sequence[str], columns: int = 4) -> bytes:
    """The same formulas as PNG, for where SVG is not trusted."""
    from rdkit.Chem.Draw.rdMolDraw2D import MolDraw2DCairo

    return bytes(_drawn(MolDraw2DCairo, smiles, captions, columns))
