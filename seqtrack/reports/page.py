"""The report as one web page that needs nothing else: styles inside, images inlined, no script, no network.

Turns the Markdown that this project writes into HTML: headings, paragraphs, lists, tables, images, links, code, bold.
It is no general Markdown reader. Everything that comes from a file of the run is escaped.
"""

import base64
import html
import re
from pathlib import Path

from seqtrack.errors import UserError

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
td.number, th.number { text-align: right; white-space: nowrap; }
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
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


def report_page(markdown: str, folder: Path) -> str:
    """A whole HTML document.

    Args:
        markdown: as `report_text` makes it.
        folder: where its links start from; images are read there and inlined.

    Raises:
        UserError: an image cannot be read.
    """
    blocks = _blocks(markdown)
    title = next((_plain(text) for kind, text in blocks if kind == "h1"), "Report")
    contents = [(_anchor(text), _inline(text)) for kind, text in blocks if kind == "h2"]
    body = []
    for kind, text in blocks:
        body.append(_render(kind, text, folder))
        if kind == "h1" and contents:
            items = "".join(f'<li><a href="#{anchor}">{_without_number(label)}</a></li>' for anchor, label in contents)
            body.append(f"<nav><ol>{items}</ol></nav>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _blocks(markdown: str) -> list[tuple[str, str]]:
    """(kind, text) of each block: h1 to h3, p, list, table, code, images."""
    blocks: list[tuple[str, str]] = []
    lines = markdown.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
            continue
        if line.startswith("```"):
            end = next((i for i in range(at + 1, len(lines)) if lines[i].startswith("```")), len(lines))
            blocks.append(("code", "\n".join(lines[at + 1 : end])))
            at = end + 1
            continue
        if heading := re.match(r"(#{1,3}) (.*)", line):
            blocks.append((f"h{len(heading[1])}", heading[2]))
            at += 1
            continue
        kind = _kind(line)
        end = at + 1
        while end < len(lines) and lines[end].strip() and _kind(lines[end]) == kind:
            end += 1
        blocks.append((kind, "\n".join(lines[at:end])))
        at = end
    return blocks


def _kind(line: str) -> str:
    if line.startswith("|"):
        return "table"
    if line.startswith("- "):
        return "list"
    if line.startswith("```") or line.startswith("#"):
        return "other"
    return "images" if _IMAGE.fullmatch(line.strip()) else "p"


def _render(kind: str, text: str, folder: Path) -> str:
    if kind == "h2":
        return f'<h2 id="{_anchor(text)}">{_inline(text)}</h2>'
    if kind in ("h1", "h3"):
        return f"<{kind}>{_inline(text)}</{kind}>"
    if kind == "code":
        return f"<pre>{html.escape(text)}</pre>"
    if kind == "list":
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in text.splitlines()) + "</ul>"
    if kind == "table":
        return _table(text)
    if kind == "images":
        return '<div class="plots">' + "".join(_image(match, folder) for match in _IMAGE.finditer(text)) + "</div>"
    return f"<p>{_inline(text)}</p>"


def _table(text: str) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in text.splitlines()]
    heading, alignment, body = rows[0], rows[1], rows[2:]
    right = [cell.endswith(":") for cell in alignment]

    def row(cells: list[str], tag: str) -> str:
        made = []
        for index, cell in enumerate(cells):
            style = ' class="number"' if index < len(right) and right[index] else ""
            made.append(f"<{tag}{style}>{_inline(cell.replace(chr(92) + '|', '|'))}</{tag}>")
        return "<tr>" + "".join(made) + "</tr>"

    head = f"<thead>{row(heading, 'th')}</thead>" if any(heading) else ""
    return f'<div class="wide"><table>{head}<tbody>{"".join(row(cells, "td") for cells in body)}</tbody></table></div>'


def _image(match: "re.Match[str]", folder: Path) -> str:
    path = folder / match[2]
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: the report's image cannot be read ({error.strerror})") from error
    return f'<img alt="{html.escape(match[1])}" src="data:image/png;base64,{data}">'


def _inline(text: str) -> str:
    """Escape, then code, bold and links. Code is set first, and what stands in it is left alone."""
    parts = re.split(r"(`[^`]+`)", text)
    made = []
    for part in parts:
        if len(part) > 2 and part.startswith("`") and part.endswith("`"):
            made.append(f"<code>{html.escape(part[1:-1])}</code>")
            continue
        escaped = html.escape(part)
        escaped = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)
        made.append(escaped)
    joined = "".join(made)
    # Only links to places of this project's own writing: a relative path or https; never a script.
    return re.sub(r"\[((?:(?!\]\().)+)\]\(((?:https://|[\w./-])[^)\s:]*)\)", r'<a href="\2">\1</a>', joined)


def _plain(text: str) -> str:
    return re.sub(r"[`*]", "", text)


def _without_number(label: str) -> str:
    return re.sub(r"^\d+\. ", "", label)


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", _plain(text).lower()).strip("-")
