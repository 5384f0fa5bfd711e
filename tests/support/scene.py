"""Two days in the life of a queue, for the screens people look at: varied, and always the same.

Who lives in it has beaten, and holds its leases, an hour ahead: a test may take its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    import asyncpg

READING = UUID("5c1e0000-0000-4000-8000-000000000001")
FAILED = UUID("5c1e0000-0000-4000-8000-0000000000f0")

# Busy by day, quiet by night; a bad hour yesterday; a quicker release since this morning.
_ENDED = """
with hours as (
    select h, (4 + 9 * (1 + sin((h + 3) / 24.0 * 2 * pi())) + (h * 7) % 5)::int as jobs
    from generate_series(0, 46) as h
)
insert into public.processing_jobs (
    user_id, storage_path, status, progress, attempts, lease_epoch, pipeline_version, worker_id,
    created_at, run_at, started_at, completed_at, current_step, error_message)
select md5(h || '-' || n)::uuid, 'exports/' || left(md5(h || '-' || n), 8) || '/export.zip', s.status,
       100, 1, 2, case when h < 14 then '0.2.0' else '0.1.0' end, 'gone-1-abc', ended - took, ended - took,
       ended - took, ended, 'regenerate_sections',
       case when s.status = 'failed' then
           case when n % 2 = 0 then 'download_conversations: export.zip: it is encrypted'
                else 'extract_facts: 31 of 412 chunks could not be read: below the floor of 0.95' end
       end
from hours
cross join lateral generate_series(1, jobs) as n
cross join lateral (
    select case when h in (20, 21) and n % 3 = 0 or (h * 31 + n) % 61 = 0 then 'failed'
                when (h * 17 + n) % 89 = 0 then 'cancelled' else 'complete' end as status,
           make_interval(secs => (case when h < 14 then 40 else 75 end) * (0.3 + (n * 37 % 29) / 9.0))
               as took,
           now() - make_interval(hours => h, mins => n % 50, secs => 30) as ended
) as s;
"""
_PAID = """
insert into fullpass.job_events (job_id, at, event, step, data)
select id, completed_at, case status when 'complete' then 'completed' else status end, current_step,
       jsonb_strip_nulls(jsonb_build_object('error', error_message))
from public.processing_jobs where completed_at is not null;
insert into fullpass.hourly_costs
select date_trunc('hour', now(), 'UTC') - make_interval(hours => h), p.purpose, 'claude-haiku-5-5', 0,
       p.calls * (1 + h % 7), (h % 5 = 0)::int, p.calls * 8100 * (1 + h % 7),
       p.calls * 900 * (1 + h % 7), 0, p.calls * 0.0021 * (1 + h % 7), 0
from generate_series(0, 700) as h,
     (values ('extract', 46), ('memory', 2), ('sections', 5)) as p (purpose, calls)
on conflict do nothing;
"""
_LIVE = """
insert into fullpass.workers (worker_id, version, started_at, last_beat_at, rss_bytes, peak_rss_bytes,
                              memory_limit_bytes, loop_lag_ms, llm_in_flight, llm_limit, llm_held_by)
values ('worker-7d9f-1-a1b2c3', '0.2.0', now() - interval '5 hours', now() + interval '1 hour', 171000000, 240000000,
        536870912, 3, 3, 3, 'ceiling'),
       ('worker-7d9f-1-d4e5f6', '0.2.0', now() - interval '5 hours', now() + interval '1 hour',
        318000000, 402000000, 536870912, 9, 1, 2, 'memory'),
       ('worker-5c2a-1-0a0b0c', '0.1.0', now() - interval '2 days', now() - interval '4 minutes',
        150000000, 260000000, 536870912, 2, 0, 3, 'ceiling');
insert into public.processing_jobs (
    id, user_id, storage_path, status, lease_epoch, lease_expires_at, worker_id, started_at, run_at,
    created_at, current_step, progress, attempts, pipeline_version, conversation_count, message_count)
select ('5c1e0000-0000-4000-8000-00000000000' || n)::uuid, md5('live' || n)::uuid,
       'exports/' || left(md5('live' || n), 8) || '/export.zip', 'processing', 1,
       case n when 4 then now() - interval '3 minutes' else now() + interval '1 hour' end,
       (array['worker-7d9f-1-a1b2c3', 'worker-7d9f-1-a1b2c3', 'worker-7d9f-1-d4e5f6',
              'worker-5c2a-1-0a0b0c'])[n], at, at, at - interval '3 seconds',
       (array['extract_facts', 'save_chunks', 'generate_memory', 'extract_facts'])[n],
       (array[46, 12, 84, 31])[n], 1, case n when 4 then '0.1.0' else '0.2.0' end, 1240, 18903
from generate_series(1, 4) as n
cross join lateral (select now() - make_interval(secs => (array[190, 14, 420, 900])[n]) as at) as t;
insert into public.processing_jobs (id, user_id, storage_path, run_at, created_at)
select gen_random_uuid(), md5('due' || n)::uuid, 'exports/due/' || n || '.zip',
       now() - make_interval(secs => n * 20), now() - make_interval(secs => n * 20)
from generate_series(1, 6) as n;
insert into fullpass.passes (job_id, user_id, source, claimed_at, last_progress_at, expected_end)
select id, user_id, 'chatgpt', started_at, now() - interval '2 seconds', now() + interval '4 minutes'
from public.processing_jobs where status = 'processing';
insert into fullpass.job_events (job_id, at, event, step, attempt, lease_epoch, worker_id, data)
select j.id, j.started_at + make_interval(secs => e.after), e.event, e.step, 1, 1, j.worker_id,
       e.data::jsonb
from public.processing_jobs j
join (values
    (0, 0.0, 'claimed', null, null),
    (1, 0.1, 'step.started', 'download_conversations', null),
    (1, 0.2, 'step.started', 'chunk_conversations', null),
    (1, 0.3, 'step.started', 'save_chunks', null),
    (1, 9.8, 'step.finished', 'download_conversations', '{"seconds": 9.7, "bytes": 48203114}'),
    (1, 12.0, 'step.finished', 'chunk_conversations', '{"seconds": 11.8, "chunks": 612}'),
    (1, 14.4, 'step.finished', 'save_chunks', '{"seconds": 14.1, "chunks": 612}'),
    (1, 14.5, 'step.started', 'extract_facts', null),
    (2, 0.1, 'step.started', 'download_conversations', null),
    (2, 0.2, 'step.started', 'chunk_conversations', null),
    (2, 0.3, 'step.started', 'save_chunks', null),
    (3, 0.1, 'step.started', 'download_conversations', null),
    (3, 21.0, 'step.finished', 'download_conversations', '{"seconds": 20.9}'),
    (3, 22.0, 'step.started', 'extract_facts', null),
    (3, 371.0, 'step.finished', 'extract_facts', '{"seconds": 349.0}'),
    (3, 371.1, 'step.started', 'consolidate_facts', null),
    (3, 384.0, 'step.finished', 'consolidate_facts', '{"seconds": 12.9}'),
    (3, 384.1, 'step.started', 'reduce_facts', null),
    (3, 401.0, 'step.finished', 'reduce_facts', '{"seconds": 16.9}'),
    (3, 401.1, 'step.started', 'generate_memory', null),
    (4, 0.1, 'step.started', 'extract_facts', null)
) as e (n, after, event, step, data)
    on e.n = 0 or j.id = ('5c1e0000-0000-4000-8000-00000000000' || e.n::int)::uuid
where j.status = 'processing'
order by j.id, e.after;
insert into fullpass.chunk_outcomes (user_id, content_hash, job_id, chunk_id, source, extractor,
                                     outcome, created_at)
select md5('live1')::uuid, 'h' || n, '5c1e0000-0000-4000-8000-000000000001', gen_random_uuid(),
       'chatgpt', 'llm', case when n % 9 = 0 then 'empty' when n % 40 = 0 then 'salvaged' else 'ok' end,
       now() - make_interval(secs => 170 - n * 0.6)
from generate_series(1, 280) as n;
insert into public.conversation_chunks (user_id, conversation_id, title, content, message_count,
                                        created_at, is_recent, chunk_tier, content_hash, source)
select md5('live1')::uuid, 'c-' || n, 'a title', 'SECRET WORDS OF A CONVERSATION', 4, now(), true,
       'medium', 'h' || n, 'chatgpt'
from generate_series(1, 612) as n;
insert into fullpass.windows (user_id, source, content_hashes, token_count)
select md5('live1')::uuid, 'chatgpt', array_agg('h' || n), 10 from generate_series(281, 612) as n;
insert into fullpass.llm_calls (user_id, job_id, purpose, provider, model, prompt_version,
                                input_tokens, output_tokens, cost_usd, usable, response, created_at)
select md5('live1')::uuid, '5c1e0000-0000-4000-8000-000000000001', 'extract', 'anthropic',
       'claude-haiku-5-5', 'v1', 8100, 920, 0.00127, n % 30 > 0, 'SECRET REPLY OF A MODEL',
       now() - make_interval(secs => n * 2)
from generate_series(1, 84) as n;
insert into public.processing_jobs (
    id, user_id, storage_path, status, lease_epoch, started_at, completed_at, created_at,
    current_step, progress, attempts, pipeline_version, error_message)
values ('5c1e0000-0000-4000-8000-0000000000f0', md5('bad')::uuid, 'exports/bad/export.zip', 'failed',
        4, now() - interval '20 minutes', now() - interval '9 minutes', now() - interval '21 minutes',
        'download_conversations', 2, 2, '0.2.0',
        'download_conversations: exports/bad/export.zip: it is encrypted; export it again');
"""


async def two_days(db: asyncpg.Connection[asyncpg.Record]) -> None:
    """Fill an empty, migrated database with the scene."""
    await db.execute("alter table public.processing_jobs disable trigger user")
    for sql in (_ENDED, _PAID, _LIVE):
        await db.execute(sql)
    await db.execute("alter table public.processing_jobs enable trigger user; analyze")
