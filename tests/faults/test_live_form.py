"""The live tests are themselves tried: skipped with their reason, and whole against stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.support.cli import ROOT, ask
from tests.support.stage import PERSON, stage

if TYPE_CHECKING:
    from pathlib import Path


def live(**given: str) -> str:
    """Run tests/live in a process of its own and give what pytest says."""
    of_ours = ("FULLPASS_LIVE", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(of_ours)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/live"],
        cwd=ROOT, env=kept | given, capture_output=True, text=True, timeout=110, check=False,
    ).stdout  # fmt: skip


def test_without_their_variables_the_live_tests_are_skipped_and_say_which() -> None:
    said = live()
    assert "2 skipped" in said, said
    assert "not set: FULLPASS_LIVE_DATABASE_URL" in said


@pytest.mark.long
def test_the_live_tests_pass_on_a_project_that_works_and_leave_nobody_behind(
    tmp_path: Path,
) -> None:
    with stage(tmp_path) as built:
        built.model.truth = None
        said = live(
            FULLPASS_LIVE_DATABASE_URL=built.database_url,
            FULLPASS_LIVE_SUPABASE_URL=built.project.url,
            FULLPASS_LIVE_SUPABASE_SERVICE_KEY=built.project.key,
            FULLPASS_LIVE_BUCKET="exports",
            FULLPASS_LIVE_ANTHROPIC_API_KEY="test-key",
            FULLPASS_LIVE_ANTHROPIC_BASE_URL=built.model.url,
        )
        assert "2 passed" in said, said
        left = ask(built.database_url, "select id from auth.users")
        assert [row["id"] for row in left] == [UUID(PERSON)]
