"""Text from files stays literal text for a Markdown parser."""

import pytest
from markdown_it import MarkdownIt

from seqtrack.markdown import code, code_block, escape, table

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
LIST = {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}

HOSTILE = [
    "x\n\n# Injected\n\n<script>alert(1)</script>", "# heading", "- item", "1. item", "***bold***", "a | b | c",
    "a \\| b", "`code` and ``more``", "```\nfence", "[x](javascript:alert(1))", "![x](https://evil.example/a.png)",
    "<img src=x onerror=alert(1)>", "&lt;script&gt; &#60;b&#62;", "_a_ __b__ ~~c~~", "---", "> quote", "back\\slash\\",
    "\x1b[31mred\x1b[0m \u202egnp.exe", "http://x_y_z",
]  # fmt: skip


def plain(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_from_a_file_is_literal(text: str) -> None:
    for before in ("", "- ", "Word "):
        tokens = READER.parse(before + escape(text))
        inside = [child for token in tokens for child in token.children or ()]
        assert {one.type for one in (*tokens, *inside)} <= PLAIN | (LIST if before == "- " else set())
        assert plain("".join(one.content for one in inside)) == plain(before.removeprefix("- ") + text)

    for form in (str, code):
        tokens = READER.parse(table(["head", "other"], [[form(text), 5]], texts=2))
        assert [token.type for token in tokens].count("td_open") == 2
        cell = [token for token in tokens if token.type == "inline"][2]
        assert {one.type for one in cell.children or ()} <= {"text", "text_special", "code_inline"}

    (fence,) = READER.parse(code_block([text, "last line"]))
    assert fence.type == "fence" and fence.content.endswith("last line\n")
