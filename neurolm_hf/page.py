"""One HTML page that needs no other file: sections of text, tables and pictures, for screens of any width and paper.

Whatever comes from outside is escaped here, once: what these functions return is HTML, what they take is plain text.
Pages hold no script and ask for nothing from outside.
"""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NewType


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Html = NewType("Html", str)


def write_page(
    directory: str | Path, title: str, sections: Iterable[Html], *, lead: str = "", description: str = ""
) -> Path:
    """Writes `index.html`.

    Args:
        directory: made where it is not there.
        title: heading of the page, and its title.
        sections: of `section`, in order.
        lead: a sentence below the heading.
        description: of the page, for those who only see a link to it.

    Returns:
        The path of `index.html`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "index.html"
    below = paragraph(lead, kind="lead") if lead else ""
    body = "\n".join(sections)
    about = html.escape(description or lead or title)
    text = PAGE.format(title=html.escape(title), description=about, style=CSS, lead=below, body=body)
    page.write_text(text, encoding="utf-8")
    return page


def section(heading: str, *parts: Html) -> Html:
    """A heading and what stands below it."""
    return Html(f"<section><h2>{html.escape(heading)}</h2>{''.join(parts)}</section>")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph; `kind` is 'warning' for what must not be missed, 'lead' for what comes first."""
    of_kind = f" class={kind}" if kind else ""
    return Html(f"<p{of_kind}>{html.escape(text)}</p>")


def bullets(items: Iterable[str]) -> Html:
    """A list of sentences."""
    return Html(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>")


def picture(directory: str | Path, name: str, figure: "Figure", alt: str, caption: str = "") -> Html:
    """A figure, saved as `name.png` into a directory, which is made, and embedded.

    Args:
        alt: what the picture shows, for those who cannot see it.
        caption: how to read it.

    Raises:
        ValueError: the name is not fit for a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"figure names become file names and may have letters, digits, - and _ only, not {name!r}")
    path = Path(directory) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{image}{below}</figure>")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", numbers: bool = False, bold: int = 0
) -> Html:
    """A table whose first column names the rows.

    Args:
        caption: what it holds.
        numbers: whether the other columns are figures, which are set to the right.
        bold: column that stands out, 0 for none.
    """
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in header)
    body = "".join(_row(name, cells, bold) for name, *cells in rows)
    kind = " class=numbers" if numbers else ""
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    # a table that is wider than the screen scrolls in itself, by keyboard too
    scroll = f'<div class=scroll role=region tabindex=0 aria-label="{html.escape(caption or header[0] or "Table")}">'
    return Html(f"{scroll}<table{kind}>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _row(name: str, cells: Sequence[str], bold: int) -> str:
    of_cells = "".join(
        f"<td{' class=bold' if place == bold else ''}>{html.escape(cell)}</td>" for place, cell in enumerate(cells, 1)
    )
    return f"<tr><th scope=row>{html.escape(name)}</th>{of_cells}</tr>"


CSS = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #444; --line: #ddd; --rule: #555; --page: #fff;
  --warning: #a13300; }
@media (prefers-color-scheme: dark) { :root { --text: #eaeaea; --soft: #bdbdbd; --line: #444; --rule: #999;
  --page: #17191c; --warning: #ffb07a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.lead { font-size: 1.05rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th:first-child { padding-left: 0; }
thead th { border-bottom: 2px solid var(--rule); overflow-wrap: normal; vertical-align: bottom; }
tbody th { font-weight: normal; min-width: 7.5rem; }
.numbers td, .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.bold { font-weight: bold; }
figure { margin: .8rem 0 1.4rem; } figcaption, p, li { color: var(--soft); font-size: .95rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.warning { color: var(--warning); font-weight: bold; }
@media (min-width: 44rem) { .numbers td { white-space: nowrap; } }
@media (max-width: 30rem) { th, td { padding: .3rem .35rem; } table { font-size: .85rem; }
  tbody th { min-width: 5.6rem; } }
@media print { :root { color-scheme: light; --text: #000; --soft: #333; --line: #bbb; --rule: #555; --page: #fff;
  --warning: #a13300; } body { max-width: none; padding: 0; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2, caption { break-after: avoid; } .numbers td { white-space: nowrap; }
  section > p { break-before: avoid; break-after: avoid; } th, td { padding: .15rem .5rem; }
  img { max-height: 10.8cm; width: auto; margin: 0 auto; } .scroll { overflow: visible; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="{description}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{lead}
{body}
</main>
</body>
</html>
"""
