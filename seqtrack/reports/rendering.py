"""Render the jinja2 templates of this package, and the report as one self-contained web page.

Every value of a template is escaped unless it is already `Markdown`. markdown-it reads the Markdown for the page and
escapes its texts; HTML in it stays text, and addresses that run code are no links. The page has no script and needs no
network: styles and images are inlined.
"""

import base64
import itertools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from markupsafe import escape as escape_html

from seqtrack.markdown import code, code_block, escape, number, table
from seqtrack.runtime.metrics_log import clock


def _environment(**options: object) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, **options,  # type: ignore[arg-type]
    )  # fmt: skip


_HTML, _MARKDOWN = _environment(autoescape=True), _environment(finalize=escape)
_MARKDOWN.globals |= {"table": table, "code_block": code_block}
_MARKDOWN.filters |= {"clock": clock, "code": code, "number": number, "percent": lambda share: f"{100 * share:.1f} %"}
# The folders of another machine, or of this one, mean nothing to a reader; a path ends in what it names.
_FOLDERS = re.compile(r"(?<![\w./])/(?:(?:[^\s/:,;]+/)*?(?=phase_[12]\b)|(?:[^\s/:,;]+/)*(?=[^\s/:,;]))")
_MARKDOWN.filters["local"] = lambda text: _FOLDERS.sub("", text)
_MARKDOWN.filters["listed"] = lambda value: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_markdown(template: str, **values: object) -> str:
    """The text of a `*.md.j2` template."""
    text = _MARKDOWN.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)  # the blank lines around what a template leaves out


_VERDICTS = ("identical", "differs", "confirmed", "refuted", "undecided")


def _code(self: object, tokens: list[Token], index: int, options: object, env: object) -> str:
    """A digest by its first digits, the whole one where the pointer rests on it; other names may break at their dots,
    underscores and slashes."""
    text = tokens[index].content
    if re.fullmatch("[0-9a-f]{64}", text):
        return f'<code title="{text}">{text[:12]}</code>'
    return "<code>" + re.sub(r"(?<=\w)([._/])(?=\w)", r"\1<wbr>", str(escape_html(text))) + "</code>"


def _is_safe(address: str) -> bool:
    """Whether a link may lead there: a relative path, or a host by https."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return bool(parts.netloc) if parts.scheme == "https" else not (parts.scheme or parts.netloc or address[:1] == "/")


def markdown_reader() -> MarkdownIt:
    """The reader of reports: tables, no HTML, only safe links."""
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    reader.validateLink = _is_safe  # type: ignore[method-assign, assignment]
    return reader


def report_page(markdown: str, folder: Path) -> str:
    """A whole HTML document.

    Args:
        markdown: as `write_report` makes it; begins with its only first-level heading.
        folder: what its links are relative to; images are read there and inlined.

    Raises:
        OSError: an image cannot be read.
    """
    reader = markdown_reader()
    reader.add_render_rule("code_inline", _code)
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
            contents.append((anchor, text))
        elif token.type == "paragraph_open" and all(child.type in ("image", "softbreak") for child in children):
            token.attrSet("class", "plots")
        for child, inside in itertools.pairwise([*children, inline]):
            if child.type == "strong_open" and inside.content in _VERDICTS:
                child.attrSet("class", f"verdict {inside.content}")
            if child.type == "image":
                data = (folder / unquote(str(child.attrs["src"]))).read_bytes()
                child.attrSet("src", "data:image/png;base64," + base64.b64encode(data).decode("ascii"))
    html = reader.renderer.render(tokens, reader.options, {})
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    lead, heading, body = html.partition("<h2")
    values = {"title": title, "contents": contents, "lead": Markup(lead), "body": Markup(heading + body)}
    return _HTML.get_template("page.html.j2").render(values)
