"""Text from files stays literal text for a Markdown parser, and only safe links are links."""

import pytest
from markdown_it import MarkdownIt

from seqtrack.markdown import code, code_block, escape, escape_with_links, is_safe_link, table

READER = MarkdownIt("commonmark", {"html": True}).enable("table")

HOSTILE = [
    "x\n\n# Injected\n\n<script>alert(1)</script>",
    "# heading",
    "- item",
    "1. item",
    "***bold***",
    "a | b | c",
    "a \\| b",
    "`code` and ``more``",
    "```\nfence",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/a.png)",
    "<img src=x onerror=alert(1)>",
    "&lt;script&gt; &#60;b&#62;",
    "_a_ __b__ ~~c~~",
    "---",
    "> quote",
    "back\\slash\\",
    "\x1b[31mred\x1b[0m \u202egnp.exe",
    "http://x_y_z",
]


def texts(markdown: str) -> tuple[set[str], str]:
    """The kinds of all tokens, and the visible text."""
    tokens = READER.parse(markdown)
    inside = [child for token in tokens for child in token.children or ()]
    return {one.type for one in (*tokens, *inside)}, "".join(one.content for one in inside)


def plain(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("before", ["", "- ", "Word "])
def test_escaped_text_is_literal(text: str, before: str) -> None:
    kinds, seen = texts(before + escape(text))
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"} | (
        {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"} if before == "- " else set()
    )
    assert plain(seen) == plain(before.removeprefix("- ") + text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("form", [str, code])
def test_a_cell_of_a_table_is_one_cell(text: str, form: type) -> None:
    tokens = READER.parse(table(["head", "other"], [[form(text), 5]], texts=2))
    cells = [token for token in tokens if token.type == "td_open"]
    assert len(cells) == 2 and [token.type for token in tokens].count("heading_open") == 0
    inline = [token for token in tokens if token.type == "inline"][2]
    assert {one.type for one in inline.children or ()} <= {"text", "text_special", "code_inline"}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_quoted_lines_cannot_close_their_block(text: str) -> None:
    (token,) = READER.parse(code_block([text, "last line"]))
    assert token.type == "fence" and token.content.endswith("last line\n")


@pytest.mark.parametrize(
    "address",
    ["https://a.example", "HTTPS://A.EXAMPLE/b?c=d#e", "a/b.json", "../a/b.json", "b.json#x", "#x", "https://a:8443/"],
)
def test_https_and_relative_paths_are_links(address: str) -> None:
    assert is_safe_link(address)
    assert escape_with_links(f"see [x]({address}).") == f"see [x]({address})."


@pytest.mark.parametrize(
    "address",
    [
        "//evil.example/a",
        "///evil.example",
        "\\\\evil.example",
        "/\\evil.example",
        "https:evil.example",
        "https:///evil.example",
        "https://me@evil.example",
        "http://evil.example",
        "javascript:alert",
        "JaVaScRiPt:alert",
        "java\tscript:alert",
        "\x01javascript:alert",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "/etc/passwd",
        "a b",
        "https://[evil",
        "x\ny",
        "",
    ],
)
def test_nothing_else_is_a_link(address: str) -> None:
    assert not is_safe_link(address)
    kinds, _ = texts(escape_with_links(f"see [x]({address})"))
    assert "link_open" not in kinds
