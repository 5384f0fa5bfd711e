"""The migration files: where they are, what makes one valid, and one script of them all.

A migration is a plain file `sql/migrations/NNNN_name.sql`: idempotent, immutable once released, and
fit to be pasted into a SQL editor. Its first line may be `-- no-transaction`; then it holds one
statement with CONCURRENTLY. Applying them is the business of `daemon.migrations`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import UsageError

BOOTSTRAP = """
create schema if not exists fullpass;
create table if not exists fullpass.schema_migrations (
    version integer primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default now()
);
"""
"""What must exist before the first migration can be recorded."""

_FILE_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_NO_TRANSACTION = "-- no-transaction"
_TRANSACTION_CONTROL = re.compile(r"^\s*(begin|commit|rollback)\s*;", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `sha256` is over its text with line ends normalised to LF."""

    version: int
    name: str
    sql: str
    sha256: str
    transactional: bool

    @property
    def label(self) -> str:
        """The file name without its suffix: `0003_ledger`."""
        return f"{self.version:04d}_{self.name}"


def sql_root() -> Path:
    """Folder that holds `migrations/`: in an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_sql", package.parent / "sql"):
        if candidate.is_dir():
            return candidate
    raise UsageError("the SQL files of fullpass are missing: install it again")


def load_migrations(directory: Path | None = None) -> tuple[Migration, ...]:
    """All migrations in order of version. Raises UsageError for a file that breaks the rules."""
    folder = sql_root() / "migrations" if directory is None else directory
    found = [_load(path) for path in sorted(folder.glob("*.sql"))]
    versions = [migration.version for migration in found]
    for version in versions:
        if versions.count(version) > 1:
            raise UsageError(f"{folder}: two files have version {version:04d}: renumber one")
    return tuple(found)


def print_sql(directory: Path | None = None) -> str:
    """One script that does what `apply` does, for psql or a SQL editor."""
    parts = [
        "-- fullpass: every migration, in order. Safe to run again.",
        "-- A statement marked `-- no-transaction` must be run on its own in editors that wrap",
        "-- a whole script in one transaction.",
        BOOTSTRAP.strip(),
    ]
    for migration in load_migrations(directory):
        record = (
            "insert into fullpass.schema_migrations (version, name, sha256) values "
            f"({migration.version}, '{migration.name}', '{migration.sha256}') "
            "on conflict (version) do nothing;"
        )
        body = f"{migration.sql.strip()}\n{record}"
        if migration.transactional:
            body = f"begin;\n{body}\ncommit;"
        parts += [f"-- ---- {migration.label} ----", body]
    return "\n\n".join(parts) + "\n"


def _load(path: Path) -> Migration:
    match = _FILE_NAME.match(path.name)
    if match is None:
        raise UsageError(f"{path}: a migration is named NNNN_name.sql: rename it")
    sql = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    transactional = not sql.startswith(_NO_TRANSACTION)
    statements = [part for part in without_comments(sql).split(";") if part.strip()]
    if not transactional and (len(statements) != 1 or "concurrently" not in statements[0].lower()):
        raise UsageError(f"{path}: a no-transaction file holds exactly one CONCURRENTLY statement")
    if transactional and _TRANSACTION_CONTROL.search(sql):
        raise UsageError(f"{path}: leave begin and commit out: the runner owns the transaction")
    return Migration(
        version=int(match[1]),
        name=match[2],
        sql=sql,
        sha256=hashlib.sha256(sql.encode()).hexdigest(),
        transactional=transactional,
    )


def without_comments(sql: str) -> str:
    """Return the statements alone; for files that hold no `--` inside a string."""
    return re.sub(r"--[^\n]*", "", sql)
