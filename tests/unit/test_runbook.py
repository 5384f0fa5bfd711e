"""The runbook says what to do about everything that the code can say, and quotes nothing else."""

from __future__ import annotations

import re

from tests.support.cli import ROOT
from tests.support.said import calls, migrations, modules, says, texts_of_sql

PAGE = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Give the cells of every table below a heading, up to the next of its rank."""
    mark = next(line for line in PAGE.splitlines() if line.endswith(f"# {heading}"))
    rank = len(mark) - len(mark.lstrip("#"))
    part = re.split(rf"^#{{1,{rank}}} ", PAGE.split(f"{mark}\n", 1)[1], flags=re.MULTILINE)[0]
    lines = part.splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("| `") and not below.startswith("|---")
    ]
    assert cells, heading
    return cells


def quoted(heading: str) -> list[str]:
    """Give the text in the first cell of each row."""
    return [row[0].removeprefix("| ").strip("` ") for row in rows(heading)]


def waits() -> set[str]:
    """Everything the code can wait for."""
    made = calls("Systemic", "Wait", "OutOfReach", "AwaitsBatch", "Draining")
    return {c.texts[0] for c in made if c.texts and c.texts[0]}


def source() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in modules())


def test_what_is_waited_for_is_in_the_runbook_and_nothing_else() -> None:
    page, code = quoted("Waiting, by what for"), waits()
    assert len(page) > 20
    for text in page:
        assert any(says(template, text) for template in code), f"nothing waits for: {text}"
    for template in code:
        assert any(says(template, text) for text in page), f"the runbook lacks: {template}"
    for (hint,) in {(c.texts[0],) for c in calls("systemic") if c.texts[0]}:
        assert any(f"check {hint.split('…')[0]}" in text for text in page), hint
    for hint in re.findall(r'key_hint = "([^"]+)"', source()):
        assert any(text.endswith(f"check {hint}") for text in page), hint


def test_failures_are_quoted_as_they_are_made() -> None:
    made = calls("GiveUp", "BadExport", "PoorCoverage", "TryAgain", "ReaderDied")
    code = {c.texts[0] for c in made if c.texts and c.texts[0]} | texts_of_sql()
    code |= {"unexpected …: …", "the database refused to note how this ended: …"}
    assert "the database refused to note how this ended: {" in source()
    assert 'f"unexpected {type(error).__name__}: {' in source()
    for text in quoted("Failed, by how the message begins"):
        assert any(says(template, text) or says(text, template) for template in code), text


def test_every_state_and_every_reason_of_a_stuck_job_is_told() -> None:
    sql = migrations()
    (states,) = re.findall(r"'status in \(([^)]*)\)", sql)
    assert set(quoted("A job, by its state")) == set(re.findall(r"\w+", states))
    view = sql.split("view fullpass.ops_stuck as", 1)[1].split("comment on view", 1)[0]
    reasons = set(re.findall(r"then '((?:it|its|an) [^']+)'", view))
    reasons |= set(re.findall(r"else '((?:it|its) [^']+)'", view))
    reasons |= set(re.findall(r"^\s+'(it [^']+: )'", view, re.MULTILINE))
    reasons -= set(re.findall(r"'(it is given back[^']+)'", view))  # a remedy
    told = {text.rstrip("… ") for text in quoted("Stuck, by its reason")}
    assert told == {reason.rstrip() for reason in reasons}


def test_what_status_says_first_is_told() -> None:
    overview = (ROOT / "daemon/ops/overview.py").read_text(encoding="utf-8")
    sick = re.findall(r"return False, f\"([^\"]+)\"", overview)
    sick = [re.sub(r"\{[^}]*\}", "…", text) for text in sick]
    page = [
        text.replace(" ", "") for text in quoted("The whole queue, by what `fullpass status` says")
    ]
    assert len(sick) == 4
    for text in sick:
        begins = re.sub(r"…+", "…", text.replace(" ", "").split("`")[0])
        assert any(shown.startswith(begins[:20]) for shown in page), text


def test_every_log_line_of_level_error_is_told() -> None:
    made = {c.texts[0] for c in calls("error", "critical", "exception") if c.texts and c.texts[0]}
    assert set(quoted("Alerts and log lines of level error")) == made


def test_every_line_of_the_doctor_that_can_be_bad_is_told() -> None:
    found = set()
    for call in calls("mend", "note", "unknown", folder="daemon/ops"):
        check = call.texts[0]
        if check is None:  # `rls …` in one module, `model …` in the other
            check = "model" if call.path.name == "doctor_outside.py" else "rls"
        found.add((check, call.name))
    # Chosen between two where it is made, which the sources show in another way.
    found |= {("model", "mend"), ("model", "note")}
    page = {(row[0].strip("|` "), row[1].strip()) for row in rows("The doctor, by line")}
    assert page == found


def test_what_the_runbook_tells_to_set_and_to_look_at_exists() -> None:
    from daemon.cli.commands import fullpass
    from daemon.settings import Settings

    outside = {"GOOGLE_APPLICATION_CREDENTIALS", "SIGTERM", "NTP", "UUID", "JOB", "SQLSTATE"}
    for name in set(re.findall(r"`([A-Z][A-Z_]+[A-Z])(?:=[^`]*)?`", PAGE)) - outside:
        assert name.lower() in Settings.model_fields, name
    for name in set(re.findall(r"`fullpass ([a-z]+)", PAGE)):
        assert name in fullpass.commands, name
    for view in set(re.findall(r"\b(ops_\w+)", PAGE)):
        assert f"view fullpass.{view} as" in migrations(), view
