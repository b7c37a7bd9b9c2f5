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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".toml", ".j2", ".html", ".ipynb", ".cff", ".example", ".in", ""}
# This list itself, licences and lists of names that others wrote.
SKIPPED = re.compile(
    r"(tests/)?scripts/(test_)?vocabulary\.py|LICENSE|.*(\.lock|\.gitkeep|/assets/.*|/lists/.*)|\.git.*"
)


class Rule(NamedTuple):
    """What not to write, what to write, and the paths where it is wrong (everywhere unless given)."""

    found: str
    write: str
    where: str = ""


COUNTED = (
    r"samples|frames|steps|bytes|bits|rows?|lines?|objects?|numbers?|records?|threads?|files?|commits?|[KMG]i?B|one"
)
PER = r"process|rank|step|sample|sequence|tracker|epoch|batch|GPU|second|hour|core|frame|worker|line|class|run|phase"
STATE = r"(seqtrack|tests)/(checkpoints|reports)/"
TOKENS = r"(seqtrack|tests)/model/|seqtrack/(tracking/tracker|tokens)|tests/golden/"
UPLOADS = r"(seqtrack|tests)/uploads/|docs/uploads"
RULES = [
    Rule(r"beside", "next to, with"),
    Rule(r"stands?(?! for|-in)|stood", "is, exists"),
    Rule(r"(is|are) there(?! (a|an|no|any)\b)", "exists"),
    Rule(r"told", "reported, passed, logged"),
    Rule(r"says", "states, shows, reports"),
    Rule(r"(is|are|was|were|be|been) said", "is reported, is logged"),
    Rule(r"(goes|go|went|going) on", "continues"),
    Rule(r"anew", "again"),
    Rule(r"uncut", "uninterrupted"),
    Rule(r"unsound(ness)?", "corrupt, invalid"),
    Rule(r"newest_sound|sound(ness)?", "valid"),
    Rule(r"reckon\w*", "compute, estimate"),
    Rule(r"mend(s|ed|ing)?", "fix"),
    Rule(r"by lot|the lot falls", "at random"),
    Rule(r"for ever", "forever, indefinitely"),
    Rule(r"promis(e|es|ed|ing)", "guarantee"),
    Rule(r"apart(?! from)", "quarantined (uploads), separate"),
    Rule(r"spel(ls?|t|led)", "quantize, encode, written"),
    Rule(r"expendable", "to delete"),
    Rule(r"passed over", "skipped"),
    Rule(r"hand tools?", "helper commands"),
    Rule(r"the door", "the module that builds the training components"),
    Rule(r"still box", "static-box baseline"),
    Rule(r"(?<!contact )(?<!data )sheets?", "contact sheet"),
    Rule(r"plausib(le|ility)", "sanity check"),
    Rule(r"struck", "killed"),
    Rule(r"dealt out|dealt", "distributed"),
    Rule(r"illness(es)?", "problem"),
    Rule(rf"({COUNTED}) an? ({PER})", "per ..."),
    Rule(r"RESUME_EPOCH=newest", "RESUME_EPOCH=latest"),
    Rule(r"containers?", "checkpoint file", STATE + "|seqtrack/training/"),
    Rule(r"parts of (the|a|its|their) (training )?state", "state components"),
    Rule(r"words?(?!_embeddings)", "token", TOKENS),  # word_embeddings is a name of the authors' state dict
    Rule(r"figures", "metrics (numbers), plots (images)", r"(seqtrack|tests)/(evaluation|reports)/(?!plots)"),
    Rule(r"survey|agenda|riders?|way back", "scan, upload queue, opportunistic files, download", UPLOADS),
    Rule(r"silences?|last words?|suffer\w*", "timeouts, last output, record_failure", UPLOADS),
]


def check(text: str, where: str) -> Iterator[str]:
    """A line for each wrong word of a text."""
    for rule in RULES:
        if re.match(rule.where, where):
            for match in re.finditer(rf"(?i)(?<![A-Za-z])(?:{rule.found})(?![A-Za-z])", text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{where}:{line}: found '{match[0]}', write '{rule.write}'"


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
