"""The report as one self-contained web page: styles and images inlined, no script, no network.

markdown-it reads the Markdown and escapes its texts; HTML in it stays text, and addresses that run code are no links.
"""

import base64
import itertools
import re
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markupsafe import Markup

from seqtrack.reports.rendering import render_html


def report_page(markdown: str, folder: Path) -> str:
    """A whole HTML document.

    Args:
        markdown: as `write_report` makes it; begins with its only first-level heading.
        folder: what its links are relative to; images are read there and inlined.

    Raises:
        OSError: an image cannot be read.
    """
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    tokens = reader.parse(markdown)
    title, contents = "Report", []
    for token, inline in itertools.pairwise(tokens):
        children = inline.children or []
        text = "".join(child.content for child in children)
        if token.type == "heading_open" and token.tag == "h1":
            title = text
        elif token.type == "heading_open" and token.tag == "h2":
            anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
            token.attrSet("id", anchor)
            contents.append((anchor, re.sub(r"^\d+\. ", "", text)))
        elif token.type == "paragraph_open" and all(child.type in ("image", "softbreak") for child in children):
            token.attrSet("class", "plots")
        for child in children:
            if child.type == "image":
                data = (folder / unquote(str(child.attrs["src"]))).read_bytes()
                child.attrSet("src", "data:image/png;base64," + base64.b64encode(data).decode("ascii"))
    html = reader.renderer.render(tokens, reader.options, {})
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    heading, end, body = html.partition("</h1>")
    return render_html(
        "page.html.j2", title=title, contents=contents, heading=Markup(heading + end), body=Markup(body.strip())
    )
