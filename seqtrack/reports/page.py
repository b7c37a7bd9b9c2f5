"""The report as one self-contained web page: styles and images inlined, no script, no network.

markdown-it reads the Markdown and escapes its texts; HTML in it stays text, and a link stays a link only where
`is_safe_link` allows its address.
"""

import base64
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from seqtrack.errors import UserError
from seqtrack.markdown import is_safe_link
from seqtrack.reports.rendering import render_html


def report_page(markdown: str, folder: Path) -> str:
    """A whole HTML document.

    Args:
        markdown: as `report_text` makes it; begins with its only first-level heading.
        folder: what its links are relative to; images are read there and inlined.

    Raises:
        UserError: an image cannot be read (code `report.image`).
    """
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    reader.validateLink = lambda url: is_safe_link(unquote(url))  # type: ignore[method-assign]
    tokens = reader.parse(markdown)
    title, contents = "Report", []
    for token, inline in itertools.pairwise(tokens):
        text = "".join(child.content for child in inline.children or ())
        if token.type == "heading_open" and token.tag == "h1":
            title = text
        elif token.type == "heading_open" and token.tag == "h2":
            anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
            token.attrSet("id", anchor)
            contents.append((anchor, re.sub(r"^\d+\. ", "", text)))
        elif token.type == "paragraph_open" and all(c.type in ("image", "softbreak") for c in inline.children or ()):
            token.attrSet("class", "plots")
    for image in _images(tokens):
        image.attrSet("src", _inlined(str(image.attrs["src"]), folder))
    html = reader.renderer.render(tokens, reader.options, {})
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    heading, end, body = html.partition("</h1>")
    return render_html(
        "page.html.j2", title=title, contents=contents, heading=Markup(heading + end), body=Markup(body.strip())
    )


def _images(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        if token.type == "image":
            yield token
        yield from _images(token.children or [])


def _inlined(source: str, folder: Path) -> str:
    path = folder / unquote(source)
    if ".." in path.relative_to(folder).parts:
        raise UserError(f"{path}: the report's image is not in {folder}", code="report.image")
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: the report's image cannot be read ({error.strerror})", code="report.image") from error
