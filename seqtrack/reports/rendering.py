"""Render the jinja2 templates of this package. Every value is escaped unless it is already `Markdown`."""

import re
from pathlib import Path

import jinja2

from seqtrack.markdown import code, code_block, escape, number, table
from seqtrack.runtime.metrics_log import clock


def _environment(**options: object) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,  # type: ignore[arg-type]
    )


_HTML = _environment(autoescape=True)
_MARKDOWN = _environment(finalize=escape)
_MARKDOWN.globals |= {"table": table, "code_block": code_block}
_MARKDOWN.filters |= {"clock": clock, "code": code, "number": number, "percent": lambda share: f"{100 * share:.1f} %"}
_MARKDOWN.filters["listed"] = lambda value: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_markdown(template: str, **values: object) -> str:
    """The text of a `*.md.j2` template."""
    text = _MARKDOWN.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)  # the blank lines around what a template leaves out


def render_html(template: str, **values: object) -> str:
    """The text of a `*.html.j2` template; only `markupsafe.Markup` values are inserted as HTML."""
    return _HTML.get_template(template).render(values)
