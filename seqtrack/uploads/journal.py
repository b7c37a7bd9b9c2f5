"""What is known of each file, kept over a crash: SQLite, write-ahead, every change durable before it is acted on.

The journal is a memory, not the truth: what the target holds is asked before anything is sent, so a lost or damaged
journal costs a reading of the files and no second upload. It is made again when it cannot be read or belongs to another
target.
"""

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

STATE_FOLDER = ".uploads"
JOURNAL_NAME = "journal.sqlite"
STATES = ("seen", "stable", "uploading", "committed", "verified", "apart", "damaged")
_VERSION = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, key TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0, commit_oid TEXT, error TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass
class Row:
    """One file. `key` is the stat key (size, mtime, ctime, inode) that the rest was said of; times are wall clock."""

    path: str
    key: str
    size: int
    sha256: str | None = None
    state: str = "seen"
    attempts: int = 0
    next_try: float = 0.0
    commit: str | None = None
    error: str | None = None


class Journal:
    """The table, with a copy of it in memory.

    Args:
        folder: the sidecar's own folder; exists.
        target: key of the target; rows about another one are dropped.

    A file that cannot be made (no space) is done without, and `failing` says so; damage is fixed by starting again.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self._path = folder / JOURNAL_NAME
        self.failing: str | None = None
        try:
            self._open(target)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                logger.warning("the journal %s cannot be opened (%s); continuing without it", self._path, error)
                self._open(target, place=":memory:")
                self.failing = str(error)
                return
            self._set_aside(error)
            self._open(target)

    def _open(self, target: str, place: str | None = None) -> None:
        self._base = sqlite3.connect(place or self._path, isolation_level=None, timeout=10.0)
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            broken = self._base.execute("PRAGMA quick_check(1)").fetchone()
            if broken is None or broken[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
            self._base.executescript(_SCHEMA)
            facts = dict(self._base.execute("SELECT name, value FROM facts"))
            if facts.get("target") != target or facts.get("version") != _VERSION:
                self._base.execute("DELETE FROM files")
                self._base.execute("DELETE FROM facts")
                self.set_facts({"target": target, "version": _VERSION})
            rows = self._base.execute(
                "SELECT path, key, size, sha256, state, attempts, next_try, commit_oid, error FROM files"
            )
            self.rows = {values[0]: Row(*values) for values in rows}
            self.facts = dict(self._base.execute("SELECT name, value FROM facts"))
        except sqlite3.Error:
            self._base.close()
            raise

    def _set_aside(self, error: sqlite3.Error) -> None:
        logger.warning("the journal %s is damaged (%s); it is rebuilt from what the target lists", self._path, error)
        self._path.replace(self._path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def write(self, rows: Iterable[Row]) -> None:
        """Store rows in one durable step."""
        rows = list(rows)
        self.rows.update((row.path, row) for row in rows)
        values = [(r.path, r.key, r.size, r.sha256, r.state, r.attempts, r.next_try, r.commit, r.error) for r in rows]
        if values:
            self._change("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop rows of files that went before they were sent."""
        gone = [(path,) for path in paths]
        for (path,) in gone:
            self.rows.pop(path, None)
        if gone:
            self._change("DELETE FROM files WHERE path = ?", gone)

    def set_facts(self, facts: dict[str, str]) -> None:
        """Store small facts, such as the time of the last commit."""
        if hasattr(self, "facts"):
            self.facts.update(facts)
        self._change("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))

    def mark_unverified(self) -> None:
        """Take nothing for verified any longer: the target may have been emptied."""
        for row in self.rows.values():
            if row.state in ("verified", "committed"):
                row.state = "stable"
        self.write(list(self.rows.values()))

    def close(self) -> None:
        self._base.close()

    def _change(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany(statement, values)
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            # A full disk is when uploads matter most: continue from memory, and say so in the status.
            if self.failing is None:
                logger.warning("the journal %s cannot be written (%s); continuing without it", self._path, error)
            self.failing = str(error)


def is_verified(output_dir: Path, relative_path: str, sha256: str) -> bool:
    """Whether the target was seen to hold this file with these bytes. False whenever that is not certain.

    For retention in the trainer: reads only, waits at most a second, never raises for a missing or busy journal.
    """
    place = output_dir / STATE_FOLDER / JOURNAL_NAME
    if not place.is_file():
        return False
    try:
        base = sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)
        try:
            found = base.execute("SELECT sha256, state FROM files WHERE path = ?", (relative_path,)).fetchone()
        finally:
            base.close()
    except sqlite3.Error:
        return False
    return found is not None and found[0] == sha256 and found[1] == "verified"
