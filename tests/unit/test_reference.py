"""The reference under docs/reference is what the code and a migrated database hold."""

from __future__ import annotations

import re

import annotated_types
import pytest
from pydantic.fields import FieldInfo

from daemon import errors
from daemon.settings import Settings
from tests.support.cli import ROOT, ask
from tests.support.reference import COMMANDS, commands
from tests.support.said import calls, migrations, modules

FOLDER = ROOT / "docs/reference"


def table_rows(page: str) -> list[list[str]]:
    """Give the cells of every table row of a page, headings left out."""
    lines = (FOLDER / page).read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not line.startswith("|---") and not below.startswith("|---")
    ]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


SETTINGS = {names_in(row[0])[0]: row[1:] for row in table_rows("settings.md")}


def test_every_setting_is_in_the_reference_once_and_no_other() -> None:
    assert set(SETTINGS) == {name.upper() for name in Settings.model_fields}
    assert len(table_rows("settings.md")) == len(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_defaults_and_rules_are_those_of_the_code(name: str) -> None:
    default, rule, _ = SETTINGS[name.upper()]
    field = Settings.model_fields[name]
    if name != "fullpass_home":  # it differs between machines
        assert default.strip("`") == _shown(
            field.default if field.default_factory is None else None
        )
    for bound in _bounds(field):
        assert bound in rule, f"{name}: {bound}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(field: FieldInfo) -> list[str]:
    """Give the limits of a number as the page writes them."""
    least = most = None
    found = []
    for rule in [*field.metadata, *(m for a in _inner(field) for m in a)]:
        if isinstance(rule, annotated_types.Ge):
            least = rule.ge
        elif isinstance(rule, annotated_types.Le):
            most = rule.le
        elif isinstance(rule, annotated_types.Gt) and rule.gt == 0:
            found.append("> 0")
    if least is not None and most is not None:
        return [f"{_shown(least)} – {_shown(most)}"]
    return found if least is None else [f"≥ {_shown(least)}"]


def _inner(field: FieldInfo) -> list[list[object]]:
    """Give the rules that stand inside an `X | None`."""
    parts = getattr(field.annotation, "__args__", ())
    return [list(getattr(part, "__metadata__", ())) for part in parts]


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    assert COMMANDS.read_text(encoding="utf-8") == commands(), "run `make reference`"


def test_every_table_column_and_function_named_is_there_and_none_of_the_apps_is_left_out(
    database_url: str,
) -> None:
    page = (FOLDER / "tables.md").read_text(encoding="utf-8")
    columns: dict[str, set[str]] = {}
    for row in ask(
        database_url,
        "select table_schema || '.' || table_name as name, column_name as col "
        "from information_schema.columns where table_schema in ('public', 'fullpass') "
        "and table_name not like 'ops\\_%'",
    ):
        columns.setdefault(row["name"], set()).add(row["col"])
    for table in ("processing_jobs", "user_profiles", "conversation_chunks"):
        part = page.split(f"## `public.{table}`", 1)[1].split("\n## ", 1)[0]
        told = {
            n
            for line in part.splitlines()
            if line.startswith("| `")
            for n in names_in(line.split("|")[1])
        }
        assert told == columns[f"public.{table}"], table
    part = page.split("## Schema `fullpass`", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|") for line in part.splitlines() if line.startswith("| `")]
    named = {name: row for row in rows for name in names_in(row[1])}
    ours = {name.partition(".")[2] for name in columns if name.startswith("fullpass.")}
    assert set(named) == ours
    for name, row in named.items():
        words = {n for n in names_in(row[2]) if re.fullmatch(r"[a-z_]+", n)}
        assert words <= columns[f"fullpass.{name}"], name
    functions = {
        f"{row['schema']}.{row['name']}({', '.join(row['args'] or [])})"
        for row in ask(
            database_url,
            "select pronamespace::regnamespace::text as schema, proname as name, "
            "proargnames as args from pg_proc "
            "where pronamespace in ('public'::regnamespace, 'fullpass'::regnamespace)",
        )
    }
    for told in re.findall(r"`((?:public|fullpass)\.\w+\([^`]*\))`", page):
        assert told in functions, told


def test_every_kind_of_event_on_a_timeline_is_told() -> None:
    made = set(re.findall(r"note_event\(\s*\w+, '([\w.]+)'", migrations()))
    made |= set(re.findall(r"end_job\(\s*\w+, '\w+', '(\w+)'", migrations()))
    made |= set(
        re.findall(r"job_events \(job_id, event[^)]*\)\s+values \([\w.]+, '(\w+)'", migrations())
    )
    made |= set(re.findall(r"case when v_waits then '(\w+)' else '(\w+)'", migrations())[0])
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if "note_event" not in text:
            continue
        made |= set(re.findall(r"_note\(work, \"([\w.]+)\"", text))
        made |= set(re.findall(r"grip\(\$1, \$2\), '([\w.]+)'", text))
        made |= set(re.findall(r"note_event\(\s+j, '([\w.]+)'", text))
        for either in re.findall(r"event = \"([\w.]+)\" if .* else \"([\w.]+)\"", text):
            made |= set(either)
    page = (FOLDER / "events.md").read_text(encoding="utf-8").split("## Log lines")[0]
    told = {
        n for row in page.splitlines() if row.startswith("| `") for n in names_in(row.split("|")[1])
    }
    assert told - {"event"} == made


def test_every_log_line_is_told_here_or_in_the_runbook() -> None:
    levels: dict[str, set[str]] = {}
    for call in calls("debug", "info", "warning", "error", "critical", "exception", "log"):
        if call.texts and call.texts[0] and re.fullmatch(r"[a-z_.…]+", call.texts[0]):
            levels.setdefault(call.texts[0], set()).add(call.name)
    # Made from what became of the job: released, failed or cancelled.
    levels.pop("job.…")
    levels |= {f"job.{end}": {"info"} for end in ("released", "failed", "cancelled")}
    page = (FOLDER / "events.md").read_text(encoding="utf-8").split("## Log lines")[1]
    told = {}
    for line in page.splitlines():
        if line.startswith("| `") and line.count("|") >= 4:
            cells = line.split("|")
            told |= {name: cells[2].strip() for name in names_in(cells[1])}
    told.pop("event")
    bad = {"error", "critical", "exception"}
    quiet = {name for name, found in levels.items() if not found & bad}
    assert set(told) == quiet
    for name, level in told.items():
        assert "log" in levels[name] or set(level.split(", ")) == levels[name], name


def test_every_error_of_the_tree_is_told() -> None:
    page = (FOLDER / "errors.md").read_text(encoding="utf-8")
    tree = page.split("## What an error means for a job")[1].split("## SQLSTATEs")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", tree, re.MULTILINE))
    found: set[str] = set()
    below = [errors.FullpassError]
    import daemon.llm.rate_limits  # noqa: F401 - one class stands where it is raised

    while below:
        kind = below.pop()
        if kind.__module__ in {"daemon.errors", "daemon.llm.rate_limits"}:
            found.add(kind.__name__)
        below += kind.__subclasses__()
    assert told == found
    used = set(re.findall(r"^\| (\d) \|", page, re.MULTILINE))
    assert used == {"0", "1", "2"}
    states = set(re.findall(r"errcode = '(\w+)'", migrations()))
    states = {{"crash_shutdown": "57P02"}.get(state, state) for state in states}
    assert states <= set(re.findall(r"^\| `(\w{5})` \|", page, re.MULTILINE))
