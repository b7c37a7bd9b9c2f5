"""Find words that this project replaced by the field's terms, in code, pages, scripts and the output of every --help.

    python scripts/vocabulary.py [PATH...]

Prints `file:line: found 'x', write 'y'` for each and exits with 1 if there is any. Without a PATH it reads every text
file of the repository; with some, only files whose path starts with one of them.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".toml", ".j2", ".html", ".ipynb", ".cff", ".example", ".in", ""}
# This list itself, licences and lists of names that others wrote.
SKIPPED = re.compile(
    r"(tests/)?scripts/(test_)?vocabulary\.py|LICENSE|.*(\.lock|\.gitkeep|/assets/.*|/lists/.*)|\.git.*"
)


COUNTED = (
    r"samples|frames|steps|bytes|bits|rows?|lines?|objects?|numbers?|records?|threads?|files?|commits?|[KMG]i?B|onc?e"
)
PER = r"process|rank|step|sample|sequence|tracker|epoch|batch|GPU|second|hour|core|frame|worker|line|class|run|phase"
# What not to write, what to write, and the paths where it is wrong (everywhere if empty).
RULES = [
    (r"beside", "next to, with", ""),
    (r"stands?(?! for|-in)|stood", "is, exists", ""),
    (r"(is|are) there(?! (a|an|no|any)\b)", "exists", ""),
    (r"told", "reported, passed, logged", ""),
    (r"says", "states, shows, reports", ""),
    (r"(is|are|was|were|be|been) said", "is reported, is logged", ""),
    (r"(goes|go|went|going) on", "continues", ""),
    (r"anew", "again", ""),
    (r"uncut", "uninterrupted", ""),
    (r"(newest_|un)?sound(ness)?", "valid, corrupt, invalid", ""),
    (r"reckon\w*", "compute, estimate", ""),
    (r"mend(s|ed|ing)?", "fix", ""),
    (r"by lot|the lot falls", "at random", ""),
    (r"for ever", "forever, indefinitely", ""),
    (r"promis(e|es|ed|ing)", "guarantee", ""),
    (r"apart(?! from)", "quarantined (uploads), separate", ""),
    (r"spel(ls?|t|led)", "quantize, encode, written", ""),
    (r"passed over", "skipped", ""),
    (r"hand tools?", "helper commands", ""),
    (r"still box", "static-box baseline", ""),
    (r"(?<!contact )(?<!data )sheets?", "contact sheet", ""),
    (r"plausib(le|ility)", "sanity check", ""),
    (r"struck", "killed", ""),
    (r"dealt", "distributed", ""),
    (rf"({COUNTED}) an? ({PER})", "per ...", ""),
    (r"RESUME_EPOCH=newest", "RESUME_EPOCH=latest", ""),
    (r"containers?", "checkpoint file", r"(seqtrack|tests)/(checkpoints|reports)/|seqtrack/training/"),
    (r"parts of (the|a|its|their) (training )?state", "state components", ""),
    # word_embeddings is a name of the authors' state dict
    (r"words?(?!_embeddings)", "token", r"(seqtrack|tests)/model/|seqtrack/(tracking/tracker|tokens)|tests/golden/"),
    (r"figures", "metrics (numbers), plots (images)", r"(seqtrack|tests)/(evaluation|reports)/(?!plots)"),
    (
        r"survey|agenda|riders?|way back|silences?|suffer\w*",
        "the terms of docs/uploads.md",
        r"(seqtrack|tests)/uploads/",
    ),
]


def check(text: str, where: str) -> Iterator[str]:
    """A line for each wrong word of a text."""
    for found, write, places in RULES:
        if re.match(places, where):
            for match in re.finditer(rf"(?i)(?<![A-Za-z])(?:{found})(?![A-Za-z])", text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{where}:{line}: found '{match[0]}', write '{write}'"


def texts() -> Iterator[tuple[str, str]]:
    """Path and content of every text of the project; the path of a help text is its command."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in SUFFIXES and not SKIPPED.fullmatch(name):
            yield name, path.read_text(encoding="utf-8")
    sys.path.insert(0, str(ROOT))
    from reference import parsers  # needs the path above

    for name, _, parser in parsers():
        yield f"seqtrack {name} --help", parser.format_help()


def main() -> int:
    """Check the texts."""
    prefixes = tuple(sys.argv[1:]) or ("",)
    found = [line for where, text in texts() if where.startswith(prefixes) for line in check(text, where)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
