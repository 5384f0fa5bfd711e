"""What the past days were like, ready for JSON: hours, durations, errors, costs, releases.

Beside `daemon.ops.overview`, which is this moment; both ask the ops views only, so that the
reader's role may ask them too. Writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.ops.plain import plain

if TYPE_CHECKING:
    from uuid import UUID

    from daemon.database import Connection

Rows = list[dict[str, Any]]


async def hours(connection: Connection) -> Rows:
    """Return the last 48 hours, oldest first: what ended, how long it took, what it cost."""
    return await _rows(connection, "select * from fullpass.ops_hourly")


async def ended_last(connection: Connection, *, limit: int = 10) -> Rows:
    """Return the jobs that ended last, of the last 24 hours."""
    return await _rows(
        connection,
        "select job_id, status, completed_at, seconds, pipeline_version from fullpass.ops_ended "
        "limit $1",
        limit,
    )


async def trends(connection: Connection) -> dict[str, Rows]:
    """Return what each view over a period tells, under the view's own name."""
    return {
        "hourly": await hours(connection),
        "overview": await _rows(
            connection,
            "select * from fullpass.ops_overview order by complete + failed desc, pipeline_version",
        ),
        "durations": await _rows(connection, "select * from fullpass.ops_durations"),
        "errors": await _rows(connection, "select * from fullpass.ops_errors"),
        "costs": await _rows(connection, "select * from fullpass.ops_costs"),
    }


async def steps_at_work(connection: Connection, jobs: list[UUID]) -> dict[str, Rows]:
    """Return the steps of these running passes since their last claim, by job."""
    steps: dict[str, Rows] = {}
    for row in await _rows(
        connection, "select * from fullpass.ops_steps where job_id = any ($1)", jobs
    ):
        steps.setdefault(row["job_id"], []).append(row)
    return steps


async def _rows(connection: Connection, query: str, *arguments: Any) -> Rows:
    return [plain(dict(row)) for row in await connection.fetch(query, *arguments)]
