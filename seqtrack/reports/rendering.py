"""Render the jinja2 templates of this package. Every value is escaped unless it is already `Markdown`."""

import re
from pathlib import Path
from typing import Any

import jinja2

from seqtrack.markdown import bold, code, code_block, escape, escape_with_links, number, table
from seqtrack.runtime.metrics_log import clock


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_OPTIONS: dict[str, Any] = {
    "loader": jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    "undefined": jinja2.StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}
_HTML = jinja2.Environment(**_OPTIONS, autoescape=True)
_MARKDOWN = jinja2.Environment(**_OPTIONS, finalize=escape)
_MARKDOWN.globals |= {"table": table, "code_block": code_block}
_MARKDOWN.filters |= {
    "bold": bold,
    "clock": clock,
    "code": code,
    "links": escape_with_links,
    "listed": _listed,
    "number": number,
    "percent": _percent,
}


def render_markdown(template: str, **values: Any) -> str:
    """The text of a `*.md.j2` template."""
    text = _MARKDOWN.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)  # the blank lines around what a template leaves out


def render_html(template: str, **values: Any) -> str:
    """The text of a `*.html.j2` template; only `markupsafe.Markup` values are inserted as HTML."""
    return _HTML.get_template(template).render(values)
