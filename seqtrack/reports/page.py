"""The report as one web page that needs nothing else: styles inside, images inlined, no script, no network.

markdown-it reads the Markdown and escapes its texts; HTML in it stays text, and a link stays one only where
`is_safe_link` allows its address.
"""

import base64
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token

from seqtrack.errors import UserError
from seqtrack.markdown import is_safe_link

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --quiet: #5d6b7c; --line: #d9e0e8; --tint: #f4f7fa; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 1rem; border-bottom: 3px solid var(--accent); padding-bottom: .5rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .8rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .6rem; color: var(--accent); }
nav { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1.2rem; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 2; }
a { color: var(--accent); }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--tint); border-bottom: 2px solid var(--line); }
td[style], th[style] { white-space: nowrap; }
tr:hover td { background: #fafcfe; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .85em; }
td code { overflow-wrap: anywhere; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.plots img { border: 1px solid var(--line); border-radius: 6px; width: 100%; }
@media print { main { max-width: none; padding: 0; } nav { display: none; } img { break-inside: avoid; } }
@media (max-width: 40rem) { nav ol { columns: 1; } .plots { grid-template-columns: 1fr; } }
"""


def report_page(markdown: str, folder: Path) -> str:
    """A whole HTML document.

    Args:
        markdown: as `report_text` makes it.
        folder: where its links start from; images are read there and inlined.

    Raises:
        UserError: an image cannot be read.
    """
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    reader.validateLink = lambda url: is_safe_link(unquote(url))  # type: ignore[method-assign]
    tokens = reader.parse(markdown)
    title, contents = "Report", []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            if token.tag == "h1":
                title = words
            elif token.tag == "h2":
                anchor = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
                token.attrSet("id", anchor)
                label = escapeHtml(re.sub(r"^\d+\. ", "", words))
                contents.append(f'<li><a href="#{anchor}">{label}</a></li>')
        elif token.type == "paragraph_open" and inline.children and _holds_images_only(inline.children):
            token.attrSet("class", "plots")
    for image in _images(tokens):
        image.attrSet("src", _inlined(str(image.attrs["src"]), folder))
    body = reader.renderer.render(tokens, reader.options, {})
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    if contents:
        body = body.replace("</h1>", f"</h1>\n<nav><ol>{''.join(contents)}</ol></nav>", 1)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escapeHtml(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}</main>\n</body>\n</html>\n"
    )


def _holds_images_only(children: list[Token]) -> bool:
    return all(child.type in ("image", "softbreak") for child in children)


def _images(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        if token.type == "image":
            yield token
        yield from _images(token.children or [])


def _inlined(source: str, folder: Path) -> str:
    path = folder / unquote(source)
    if ".." in Path(unquote(source)).parts:
        raise UserError(f"{path}: the report's image is not in {folder}", code="report.image")
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: the report's image cannot be read ({error.strerror})", code="report.image") from error
