"""The report as a Word document, made from the same Markdown as the page: headings, tables, plots, lists and links."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import docx
from docx.document import Document
from docx.image.exceptions import InvalidImageStreamError, UnexpectedEndOfFileError, UnrecognizedImageError
from docx.shared import Inches, Pt
from docx.text.paragraph import Paragraph
from markdown_it.tree import SyntaxTreeNode

from seqtrack.errors import UserError
from seqtrack.reports.rendering import markdown_reader

_WIDTH_INCHES = 6.3  # between the margins
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold
_SMALL_PT = 8  # of tables, so that a digest fits


def report_document(markdown: str, folder: Path, *, author: str = "") -> bytes:
    """The content of a .docx file.

    Args:
        markdown: as `write_report` makes it.
        folder: what its links are relative to; images are read there.

    Raises:
        OSError: an image cannot be read.
        UserError: it is no image.
    """
    markdown, author = (_NO_XML.sub("\ufffd", text) for text in (markdown, author))
    document = docx.Document()
    for section in document.sections:
        section.left_margin = section.right_margin = Inches((8.5 - _WIDTH_INCHES) / 2)
        section.page_width = Inches(8.5)
    document.styles["Normal"].font.size = Pt(10)
    document.core_properties.author, document.core_properties.title = author, markdown.split("\n", 1)[0].strip("# ")
    for node in SyntaxTreeNode(markdown_reader().parse(markdown)).children:
        _add_block(document, node, folder)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def _add_block(document: Document, node: SyntaxTreeNode, folder: Path) -> None:
    if node.type == "heading":
        _add_text(document.add_heading(level=min(int(node.tag[1]), 4)), node.children)
    elif node.type == "table":
        _add_table(document, [row for part in node.children for row in part.children])
    elif node.type in ("bullet_list", "ordered_list"):
        for item in node.children:
            style = "List Bullet" if node.type == "bullet_list" else "List Number"
            _add_text(document.add_paragraph(style=style), [one for part in item.children for one in part.children])
    elif node.type in ("fence", "code_block"):
        document.add_paragraph().add_run(node.content.rstrip("\n")).font.name = "Consolas"
    elif node.type == "paragraph":
        images = [one for one in node.walk() if one.type == "image"]
        for one in images:
            path = folder / unquote(str(one.attrs["src"]))
            try:
                document.add_picture(str(path), width=Inches(_WIDTH_INCHES))
            except (UnrecognizedImageError, UnexpectedEndOfFileError, InvalidImageStreamError) as error:
                text = f"{path}: cannot be read as an image; delete it, and the report leaves it out"
                raise UserError(text, "report.image") from error
        if not images:
            _add_text(document.add_paragraph(), node.children)


def _add_table(document: Document, rows: list[SyntaxTreeNode]) -> None:
    table = document.add_table(rows=len(rows), cols=len(rows[0].children), style="Table Grid")
    for number, (row, made) in enumerate(zip(rows, table.rows, strict=True)):
        for cell, goal in zip(row.children, made.cells, strict=True):
            (paragraph,) = goal.paragraphs
            _add_text(paragraph, cell.children)
            paragraph.alignment = 2 if "right" in str(cell.attrs.get("style", "")) else 0
            for run in paragraph.runs:
                run.font.size = Pt(_SMALL_PT)
                run.bold = run.bold or number == 0


def _add_text(paragraph: Paragraph, nodes: Iterable[SyntaxTreeNode], **style: bool) -> None:
    """Append inline nodes as runs; a link is followed by its address where that is not its text."""
    for node in nodes:
        if node.type in ("softbreak", "hardbreak"):
            paragraph.add_run(" ")
        elif node.type == "link":
            address, text = str(node.attrs["href"]), "".join(one.content for one in node.walk() if one.type != "link")
            paragraph.add_run(text if text == address or not re.match("https:", address) else f"{text} ({address})")
        elif node.children:
            _add_text(paragraph, node.children, bold=node.type == "strong" or style.get("bold", False))
        else:
            run = paragraph.add_run(node.content)
            run.bold = style.get("bold") or None
            if node.type == "code_inline":
                run.font.name = "Consolas"
