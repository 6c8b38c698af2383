"""A piece of HTML for notebooks: a title, sentences and a table; it brings its own look, and takes light or dark from where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MOST = 40
"""Rows that a notebook shows; the object has all."""

_BOX = "font-family: system-ui, sans-serif; color: inherit; line-height: 1.45; max-width: 62rem"
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.35)"


def fragment(title: str, sentences: Sequence[str], heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Return a title, sentences and a table as HTML that needs nothing else.

    Parameters
    ----------
    title : str
    sentences : sequence of str
        Each becomes a paragraph.
    heads : sequence of (str, bool)
        Headings, and whether the column holds numbers, which stand to the right.
    rows : sequence of sequences of str
        The first cell heads its row.

    Returns
    -------
    str
        Everything is escaped, colours are those around it, and nothing is fetched.
    """
    parts = [f'<div class="moesim" style="{_BOX}">', f'<p style="margin: 0 0 0.3em; font-weight: 600">{escape(title)}</p>']
    parts += [f'<p style="margin: 0 0 0.6em">{escape(sentence)}</p>' for sentence in sentences if sentence]
    if rows:
        numeric = [number for _, number in heads]
        parts.append(
            f'<div style="overflow-x: auto"><table style="border-collapse: collapse; font-size: 0.92em"><thead><tr style="{_LINE}">'
        )
        parts += [f'<th scope="col" style="{_cell(number)}; font-weight: 500; opacity: 0.75">{escape(head)}</th>' for head, number in heads]
        parts.append("</tr></thead><tbody>")
        for row in rows[:MOST]:
            cells = zip(row, numeric, strict=True)
            written = [
                f'<{tag} style="{_cell(number)}; font-weight: 400">{escape(text)}</{tag[:2]}>'
                for tag, (text, number) in zip(['th scope="row"', *["td"] * (len(row) - 1)], cells, strict=True)
            ]
            parts.append(f'<tr style="{_LINE}; background: transparent">{"".join(written)}</tr>')
        parts.append("</tbody></table></div>")
        if len(rows) > MOST:
            parts.append(f'<p style="margin: 0.4em 0 0; opacity: 0.75">{MOST} of {len(rows)} rows</p>')
    parts.append("</div>")
    return "".join(parts)


def _cell(number: bool) -> str:
    side = "right" if number else "left"
    return f"text-align: {side}; padding: 0.2em 0.9em 0.2em 0; white-space: nowrap; font-variant-numeric: tabular-nums"
