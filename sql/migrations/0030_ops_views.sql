-- What people watch: one view a question, and the sums that let each answer at once whatever the
-- tables hold. COMMENT says of each when to look at it and what to do.
--
-- Views show ids, steps, figures and error messages, never a word of anybody's conversations. They
-- call no function of ours, so that whoever may read a view needs no other right.
--
-- The times of a job are the app's to write: one without end, or before our era, counts as none. No
-- client could read it, nor could it be subtracted, and one row would take the view from everybody.

-- ---------------------------------------------------------------------------------------------
-- Sums of the ledger
-- ---------------------------------------------------------------------------------------------

-- What each job paid for what: a handful of rows a job where the ledger has hundreds.
create table if not exists fullpass.job_costs (
    job_id uuid not null,
    purpose text not null,
    model text not null,
    calls int not null,
    useless_calls int not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cache_read_tokens bigint not null,
    cost_usd numeric(16, 8) not null,
    unpriced_calls int not null,      -- their price is not known: cost_usd leaves them out
    primary key (job_id, purpose, model)
) with (fillfactor = 70);

-- The same by hour. Sixteen shards, so that receipts of different jobs seldom meet in one row.
create table if not exists fullpass.hourly_costs (
    hour timestamptz not null,
    purpose text not null,
    model text not null,
    shard smallint not null,
    calls int not null,
    useless_calls int not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cache_read_tokens bigint not null,
    cost_usd numeric(16, 8) not null,
    unpriced_calls int not null,
    primary key (hour, purpose, model, shard)
) with (fillfactor = 70);

-- Sums belong to the receipt: written in its own transaction, so that they never differ from the
-- ledger. The job's row first, then the hour's, in every transaction.
create or replace function fullpass.sum_receipts() returns trigger language plpgsql as $$
begin
    insert into fullpass.job_costs as s
    select coalesce(job_id, '00000000-0000-0000-0000-000000000000'), purpose, model, count(*),
           count(*) filter (where not usable), coalesce(sum(input_tokens), 0),
           coalesce(sum(output_tokens), 0), coalesce(sum(cache_read_tokens), 0),
           coalesce(sum(cost_usd), 0), count(*) filter (where cost_usd is null)
    from fresh group by 1, 2, 3 order by 1, 2, 3
    on conflict (job_id, purpose, model) do update set
        calls = s.calls + excluded.calls,
        useless_calls = s.useless_calls + excluded.useless_calls,
        input_tokens = s.input_tokens + excluded.input_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        cache_read_tokens = s.cache_read_tokens + excluded.cache_read_tokens,
        cost_usd = s.cost_usd + excluded.cost_usd,
        unpriced_calls = s.unpriced_calls + excluded.unpriced_calls;
    insert into fullpass.hourly_costs as s
    select date_trunc('hour', created_at, 'UTC'), purpose, model,
           abs(hashtext(coalesce(job_id, user_id)::text)::bigint) % 16, count(*),
           count(*) filter (where not usable), coalesce(sum(input_tokens), 0),
           coalesce(sum(output_tokens), 0), coalesce(sum(cache_read_tokens), 0),
           coalesce(sum(cost_usd), 0), count(*) filter (where cost_usd is null)
    from fresh group by 1, 2, 3, 4 order by 1, 2, 3, 4
    on conflict (hour, purpose, model, shard) do update set
        calls = s.calls + excluded.calls,
        useless_calls = s.useless_calls + excluded.useless_calls,
        input_tokens = s.input_tokens + excluded.input_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        cache_read_tokens = s.cache_read_tokens + excluded.cache_read_tokens,
        cost_usd = s.cost_usd + excluded.cost_usd,
        unpriced_calls = s.unpriced_calls + excluded.unpriced_calls;
    return null;
end
$$;
create or replace trigger llm_calls_sum_receipts
    after insert on fullpass.llm_calls referencing new table as fresh
    for each statement execute function fullpass.sum_receipts();

-- Receipts older than these tables. The trigger above keeps the ledger locked for writers until
-- this commits: nothing is summed twice or missed.
do $$
begin
    if not exists (select from fullpass.hourly_costs)
       and exists (select from fullpass.llm_calls) then
        insert into fullpass.job_costs
        select coalesce(job_id, '00000000-0000-0000-0000-000000000000'), purpose, model, count(*),
               count(*) filter (where not usable), coalesce(sum(input_tokens), 0),
               coalesce(sum(output_tokens), 0), coalesce(sum(cache_read_tokens), 0),
               coalesce(sum(cost_usd), 0), count(*) filter (where cost_usd is null)
        from fullpass.llm_calls group by 1, 2, 3;
        insert into fullpass.hourly_costs
        select date_trunc('hour', created_at, 'UTC'), purpose, model,
               abs(hashtext(coalesce(job_id, user_id)::text)::bigint) % 16, count(*),
               count(*) filter (where not usable), coalesce(sum(input_tokens), 0),
               coalesce(sum(output_tokens), 0), coalesce(sum(cache_read_tokens), 0),
               coalesce(sum(cost_usd), 0), count(*) filter (where cost_usd is null)
        from fullpass.llm_calls group by 1, 2, 3, 4;
    end if;
end
$$;

-- A job's latest receipts without reading all of them: also for the sweep, which asks for any since
-- a death.
create index if not exists llm_calls_by_job_and_time
    on fullpass.llm_calls (job_id, created_at);
drop index if exists fullpass.llm_calls_by_job;

-- What went wrong of late, on a timeline of mostly steps.
create index if not exists job_events_errors
    on fullpass.job_events (at) where event in ('retried', 'failed', 'quarantined');

-- ---------------------------------------------------------------------------------------------
-- The views
-- ---------------------------------------------------------------------------------------------

create or replace view fullpass.ops_running as
select j.id as job_id, j.user_id, j.storage_path, j.current_step as step,
       coalesce(j.progress, 0) as progress, j.worker_id, j.pipeline_version,
       coalesce(j.attempts, 0) as attempt, t.started_at,
       extract(epoch from now() - coalesce(p.claimed_at, t.started_at))::float8 as age_seconds,
       extract(epoch from now() - w.last_beat_at)::float8 as beat_age_seconds,
       extract(epoch from now() - coalesce(p.last_progress_at, p.claimed_at))::float8
           as progress_age_seconds,
       extract(epoch from t.lease_expires_at - now())::float8 as lease_left_seconds,
       o.read as chunks_read, n.unread as chunks_unread,
       round(o.read / nullif(o.read + n.unread, 0)::numeric, 4)::float8 as coverage,
       case when p.expected_end is not null
            then greatest(0, extract(epoch from p.expected_end - now())) end::float8
           as seconds_left,
       m.calls_per_minute, coalesce(c.calls, 0) as calls,
       coalesce(c.cost_usd, 0)::float8 as cost_usd, coalesce(c.unpriced_calls, 0) as unpriced_calls,
       w.waiting_for
from public.processing_jobs j
left join fullpass.passes p on p.job_id = j.id
left join fullpass.workers w on w.worker_id = j.worker_id
cross join lateral (
    select case when j.started_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.started_at end
               as started_at,
           case when j.lease_expires_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.lease_expires_at end
               as lease_expires_at
) as t
cross join lateral (
    select count(*)::int as read
    from fullpass.chunk_outcomes o where o.job_id = j.id and o.outcome <> 'failed'
) as o
cross join lateral (
    select coalesce(sum(cardinality(x.content_hashes)), 0)::int as unread
    from fullpass.windows x
    where x.user_id = j.user_id and x.source = p.source and x.state = 'planned'
) as n
cross join lateral (
    select count(*)::int as calls_per_minute from fullpass.llm_calls l
    where l.job_id = j.id and l.created_at > now() - interval '1 minute'
) as m
cross join lateral (
    select sum(s.calls)::int as calls, sum(s.cost_usd) as cost_usd,
           sum(s.unpriced_calls)::int as unpriced_calls
    from fullpass.job_costs s where s.job_id = j.id
) as c
where j.status = 'processing';
comment on view fullpass.ops_running is
'Every pass at work now: step, percent, worker, chunks read and still to read, time left (null: it cannot be said), cost so far. When to look: somebody asks whether theirs is moving. What to do: progress_age_seconds grows past a few minutes, or lease_left_seconds is below 0: see ops_stuck for that job.';

create or replace view fullpass.ops_stuck as
select j.id as job_id, j.user_id, j.status, j.current_step as step, j.worker_id,
       j.pipeline_version, s.since, extract(epoch from now() - s.since)::float8 as seconds,
       s.reason, s.remedy
from public.processing_jobs j
left join fullpass.passes p on p.job_id = j.id
left join fullpass.workers w on w.worker_id = j.worker_id
cross join lateral (
    select case when j.created_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.created_at end
               as created_at,
           case when j.updated_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.updated_at end
               as updated_at
) as t
cross join lateral (
    select case when coalesce(j.lease_epoch, 0) = 0
                then coalesce(t.updated_at, t.created_at, '1970-01-01 UTC')
                when isfinite(j.lease_expires_at) and j.lease_expires_at < now()
                then j.lease_expires_at
                else coalesce(p.last_progress_at, p.claimed_at) end as since,
           case when coalesce(j.lease_epoch, 0) = 0
                then 'an earlier system left it processing: no worker holds it'
                when j.lease_expires_at < now()
                then 'its worker is gone and no other has taken it up'
                when w.waiting_for is not null then 'its worker waits for: ' || w.waiting_for
                else 'its worker lives, and it makes no progress' end as reason,
           case when coalesce(j.lease_epoch, 0) = 0
                then 'set it to pending to have it worked, or to failed'
                when j.lease_expires_at < now() then 'start a worker: its next claim takes it up'
                when w.waiting_for is not null then 'mend what it waits for; it goes on by itself'
                else 'it is given back by itself; if it recurs, look at its timeline' end as remedy
) as s
where j.status = 'processing'
  and (coalesce(j.lease_epoch, 0) = 0 and s.since < now() - interval '10 minutes'
       or coalesce(j.lease_epoch, 0) > 0
          and (j.lease_expires_at < now() - interval '1 minute'
               or s.since < now() - interval '10 minutes'))
union all
select j.id, j.user_id, j.status, j.current_step, j.worker_id, j.pipeline_version,
       p.waiting_since, extract(epoch from now() - p.waiting_since)::float8,
       'it waits, with no attempt used up, for: ' || p.waiting_for,
       'mend what it waits for; it goes on by itself'
from fullpass.passes p
join public.processing_jobs j on j.id = p.job_id and j.status = 'pending'
where p.waiting_since < now() - interval '1 hour' and p.waiting_for is not null
  and j.run_at < 'infinity'
union all
select j.id, j.user_id, j.status, j.current_step, j.worker_id, j.pipeline_version,
       d.since, extract(epoch from now() - d.since)::float8,
       case when not exists (select from fullpass.workers l
                             where l.last_beat_at > now() - interval '1 minute')
            then 'it is due and no worker is alive'
            else 'it is due and all workers are busy, or take other users (ROLLOUT_PERCENT)' end,
       case when not exists (select from fullpass.workers l
                             where l.last_beat_at > now() - interval '1 minute')
            then 'start a worker' else 'wait, or start another worker' end
from public.processing_jobs j
cross join lateral (
    -- Due for ever is due since it was made.
    select coalesce(
               case when j.run_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.run_at end,
               case when j.created_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.created_at end,
               '1970-01-01 UTC') as since
) as d
where j.status = 'pending' and coalesce(j.run_at, '-infinity') < now() - interval '15 minutes'
  and d.since < now() - interval '15 minutes'
  and not exists (select from public.processing_jobs r
                  where r.user_id = j.user_id and r.status = 'processing')
  and not exists (select from fullpass.passes p
                  where p.job_id = j.id and p.waiting_since < now() - interval '1 hour'
                    and p.waiting_for is not null);
comment on view fullpass.ops_stuck is
'Jobs that ought to be further: held by nobody, silent for 10 minutes, waiting for an hour, or due for 15 minutes and not taken. When to look: first, whenever something seems slow. What to do: what the column remedy says; fullpass status JOB tells the rest.';

create or replace view fullpass.ops_steps as
select j.id as job_id, s.step, s.at as started_at, f.at as finished_at,
       extract(epoch from s.at - p.claimed_at)::float8 as after_seconds,
       extract(epoch from coalesce(f.at, now()) - s.at)::float8 as seconds
from public.processing_jobs j
join fullpass.passes p on p.job_id = j.id
join fullpass.job_events s
    on s.job_id = j.id and s.event = 'step.started' and s.at >= p.claimed_at
left join lateral (
    select e.at from fullpass.job_events e
    where e.job_id = j.id and e.event = 'step.finished' and e.step = s.step and e.id > s.id
    order by e.id limit 1
) as f on true
where j.status = 'processing'
order by j.id, s.id;
comment on view fullpass.ops_steps is
'The steps of every pass at work now, since its last claim: when each began, when it ended (null: it goes on), how long it takes. When to look: somebody asks what theirs spends its time on. What to do: a step that is much longer than in other passes: the log of its worker from started_at on.';

create or replace view fullpass.ops_waiting as
select j.id as job_id, j.storage_path, p.waiting_for, p.waiting_since,
       case when j.run_at between '1970-01-01 UTC' and '9999-01-01 UTC' then j.run_at end
           as run_at
from public.processing_jobs j join fullpass.passes p on p.job_id = j.id
where j.status = 'pending' and p.waiting_for is not null
order by p.waiting_since;
comment on view fullpass.ops_waiting is
'Jobs that wait for the world, with no attempt used up, the longest first. When to look: jobs are pending though workers are idle. What to do: mend what waiting_for says; each goes on by itself at run_at.';

create or replace view fullpass.ops_ended as
select j.id as job_id, j.user_id, j.storage_path, j.status, j.completed_at,
       extract(epoch from j.completed_at - case when isfinite(j.started_at) then j.started_at end)::float8 as seconds,
       j.error_message as error, j.pipeline_version
from public.processing_jobs j
where j.completed_at between now() - interval '24 hours' and now() + interval '1 day'
  and j.status in ('complete', 'failed', 'cancelled')
order by j.completed_at desc;
comment on view fullpass.ops_ended is
'Every job that ended in the last 24 hours, the newest first: how, when, after how long; a failed one with the error that names its step. When to look: somebody was told that theirs failed, or asks whether it is done. What to do: mend the cause, then fullpass retry JOB goes on from what was saved; many alike: ops_errors.';

-- By whole hours where money is concerned: the last 24 of them, and the one that is running.
create or replace view fullpass.ops_now as
select (select count(*) from public.processing_jobs where status = 'pending') as pending,
       d.due, d.oldest_due_seconds,
       (select count(*) from public.processing_jobs
        where status = 'pending' and run_at > now()) as later,
       (select count(*) from public.processing_jobs where status = 'processing') as processing,
       (select count(*) from fullpass.ops_stuck) as stuck,
       e.complete, e.failed, e.cancelled, s.calls, s.cost_usd, s.calls_of_unknown_price,
       s.cost_usd_30_days
from (
    select count(*) as due,
           extract(epoch from now() - min(run_at) filter (
               where run_at between '1970-01-01 UTC' and '9999-01-01 UTC'))::float8
               as oldest_due_seconds
    from public.processing_jobs
    where status = 'pending' and coalesce(run_at, '-infinity') <= now()
) as d
cross join (
    select count(*) filter (where status = 'complete') as complete,
           count(*) filter (where status = 'failed') as failed,
           count(*) filter (where status = 'cancelled') as cancelled
    from public.processing_jobs where completed_at between now() - interval '24 hours' and now() + interval '1 day'
) as e
cross join (
    select coalesce(sum(calls) filter (where hour > now() - interval '25 hours'), 0)::bigint
               as calls,
           coalesce(sum(cost_usd) filter (where hour > now() - interval '25 hours'), 0)::float8
               as cost_usd,
           coalesce(sum(unpriced_calls) filter (where hour > now() - interval '25 hours'), 0)::bigint
               as calls_of_unknown_price,
           coalesce(sum(cost_usd), 0)::float8 as cost_usd_30_days
    from fullpass.hourly_costs
    where hour >= date_trunc('day', now(), 'UTC') - interval '29 days'
) as s;
comment on view fullpass.ops_now is
'All of it in one row: what waits, is due and runs, what is stuck, what ended and what was spent in the last 24 hours. When to look: first. What to do: stuck above 0: ops_stuck; oldest_due_seconds grows: ops_workers; failed above 0: ops_ended.';

-- How many, of what release, in the last 24 hours. Numbers of waiting jobs stop at 10,000.
create or replace view fullpass.ops_overview as
with jobs as (
    select j.id, coalesce(j.pipeline_version, 'not begun') as version, j.status,
           extract(epoch from j.completed_at - case when isfinite(j.started_at) then j.started_at end)::float8 as seconds
    from public.processing_jobs j
    where j.completed_at between now() - interval '24 hours' and now() + interval '1 day'
      and j.status in ('complete', 'failed', 'cancelled')
    union all
    select j.id, coalesce(j.pipeline_version, 'not begun'), j.status, null
    from public.processing_jobs j where j.status = 'processing'
    union all
    (select j.id, coalesce(j.pipeline_version, 'not begun'), j.status, null
     from public.processing_jobs j where j.status = 'pending' limit 10000)
), paid as (
    select j.version, sum(s.cost_usd) as cost_usd
    from jobs j join fullpass.job_costs s on s.job_id = j.id
    where j.status <> 'pending' group by 1
), stuck as (
    select coalesce(s.pipeline_version, 'not begun') as version, count(*) as stuck
    from fullpass.ops_stuck s group by 1
)
select j.version as pipeline_version,
       count(*) filter (where j.status = 'complete') as complete,
       count(*) filter (where j.status = 'failed') as failed,
       count(*) filter (where j.status = 'cancelled') as cancelled,
       round(count(*) filter (where j.status = 'complete')
             / nullif(count(*) filter (where j.status in ('complete', 'failed')), 0)::numeric, 4
       )::float8 as success_rate,
       count(*) filter (where j.status = 'processing') as processing,
       count(*) filter (where j.status = 'pending') as pending,
       coalesce(max(s.stuck), 0) as stuck,
       percentile_cont(0.5) within group (order by j.seconds)
           filter (where j.status = 'complete') as median_seconds,
       coalesce(max(p.cost_usd), 0)::float8 as cost_usd
from jobs j
left join paid p on p.version = j.version
left join stuck s on s.version = j.version
group by j.version;
comment on view fullpass.ops_overview is
'The last 24 hours in a row a release: what ended how, what runs and waits, what it cost. When to look: each morning, and after a deploy (compare two releases by success_rate and median_seconds). What to do: a lower success_rate: ops_errors; stuck above 0: ops_stuck; a worse new release: docs/rollback.md.';

create or replace view fullpass.ops_durations as
with bounds (place, from_seconds, to_seconds) as (
    values (1, 0, 10), (2, 10, 30), (3, 30, 60), (4, 60, 120), (5, 120, 300), (6, 300, 600),
           (7, 600, 1800), (8, 1800, 3600), (9, 3600, 14400), (10, 14400, null)
), timed as (
    select coalesce(j.pipeline_version, 'not known') as pipeline_version,
           extract(epoch from j.completed_at - case when isfinite(j.started_at) then j.started_at end) as seconds
    from public.processing_jobs j
    where j.completed_at between now() - interval '7 days' and now() + interval '1 day' and j.status = 'complete'
      and j.started_at is not null
), counted as (
    select pipeline_version,
           width_bucket(seconds, array[0, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400]::numeric[])
               as place,
           count(*) as jobs
    from timed group by 1, 2
)
select c.pipeline_version, b.from_seconds, b.to_seconds, c.jobs,
       round(c.jobs / sum(c.jobs) over (partition by c.pipeline_version), 4)::float8 as share
from counted c join bounds b on b.place = greatest(1, c.place)
order by c.pipeline_version, b.from_seconds;
comment on view fullpass.ops_durations is
'How long completed passes of the last 7 days took from their first claim to their end, as a histogram for each release. When to look: after a deploy, or when people say it has become slow. What to do: the whole histogram moved: ops_hourly for when, then memory and rate limits in ops_workers; only its tail: those jobs waited or were retried.';

create or replace view fullpass.ops_errors as
with told as (
    select e.at, e.event, e.job_id, e.step,
           left(regexp_replace(regexp_replace(coalesce(e.data ->> 'error', 'no reason noted'),
               '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', '…', 'g'),
               '[0-9]+', 'N', 'g'), 300) as message
    from fullpass.job_events e
    where e.event in ('retried', 'failed', 'quarantined') and e.at > now() - interval '7 days'
)
select message, count(*) as times, count(distinct job_id) as jobs,
       count(distinct job_id) filter (where event <> 'retried') as final,
       min(at) as first_at, max(at) as last_at,
       (array_agg(job_id order by at desc))[1] as last_job_id,
       (array_agg(step order by at desc))[1] as last_step
from told group by message
order by count(distinct job_id) filter (where event <> 'retried') desc, count(*) desc
limit 50;
comment on view fullpass.ops_errors is
'What went wrong in the last 7 days, alike messages together (numbers as N, ids as …), the most final failures first. When to look: jobs fail. What to do: fullpass status last_job_id shows a whole case; a message whose final is 0 heals by itself and may still cost time.';

create or replace view fullpass.ops_hourly as
with hours as (
    select generate_series(date_trunc('hour', now(), 'UTC') - interval '47 hours',
                           date_trunc('hour', now(), 'UTC'), interval '1 hour') as hour
), ended as (
    select date_trunc('hour', j.completed_at, 'UTC') as hour,
           count(*) filter (where j.status = 'complete') as complete,
           count(*) filter (where j.status = 'failed') as failed,
           count(*) filter (where j.status = 'cancelled') as cancelled,
           avg(extract(epoch from j.completed_at - case when isfinite(j.started_at) then j.started_at end))
               filter (where j.status = 'complete') as mean_seconds
    from public.processing_jobs j
    where j.completed_at between date_trunc('hour', now(), 'UTC') - interval '47 hours'
                             and now() + interval '1 day' group by 1
), paid as (
    select s.hour, sum(s.calls) as calls, sum(s.cost_usd) as cost_usd
    from fullpass.hourly_costs s
    where s.hour >= date_trunc('hour', now(), 'UTC') - interval '47 hours' group by 1
)
select h.hour, coalesce(e.complete, 0) as complete, coalesce(e.failed, 0) as failed,
       coalesce(e.cancelled, 0) as cancelled, e.mean_seconds::float8 as mean_seconds,
       coalesce(p.calls, 0)::bigint as calls, coalesce(p.cost_usd, 0)::float8 as cost_usd
from hours h left join ended e on e.hour = h.hour left join paid p on p.hour = h.hour
order by h.hour;
comment on view fullpass.ops_hourly is
'The last 48 hours, a row an hour (UTC), quiet ones too: what ended, how long it took, calls and cost. When to look: to find when something began. What to do: an hour with calls and nothing complete: ops_errors of that time; no calls at all: ops_workers and ops_stuck.';

create or replace view fullpass.ops_costs as
select (s.hour at time zone 'UTC')::date as day, s.model, s.purpose,
       sum(s.calls) as calls, sum(s.useless_calls) as useless_calls,
       sum(s.input_tokens)::bigint as input_tokens, sum(s.output_tokens)::bigint as output_tokens,
       sum(s.cache_read_tokens)::bigint as cache_read_tokens, sum(s.cost_usd)::float8 as cost_usd,
       sum(s.unpriced_calls) as unpriced_calls
from fullpass.hourly_costs s
where s.hour >= (date_trunc('day', now(), 'UTC') - interval '29 days')
group by 1, 2, 3 order by 1 desc, 9 desc;
comment on view fullpass.ops_costs is
'What the last 30 days (UTC) cost by day, model and purpose, every paid call included. When to look: the bill, or a changed model or prompt. What to do: unpriced_calls above 0: their price is not known, so the truth is higher; many useless_calls: replies that could not be used, see the job with the most cost in ops_running or fullpass status JOB.';

create or replace view fullpass.ops_workers as
select w.worker_id, w.version, w.started_at,
       extract(epoch from now() - w.last_beat_at)::float8 as beat_age_seconds,
       w.last_beat_at > now() - interval '1 minute' as alive,
       (select count(*) from public.processing_jobs j
        where j.worker_id = w.worker_id and j.status = 'processing')::int as jobs,
       w.rss_bytes, w.peak_rss_bytes, w.memory_limit_bytes, w.loop_lag_ms, w.llm_in_flight,
       w.llm_limit, w.llm_held_by,
       (select count(*) from public.processing_jobs j
        join fullpass.llm_calls l
            on l.job_id = j.id and l.created_at > now() - interval '1 minute'
        where j.worker_id = w.worker_id and j.status = 'processing')::int as calls_per_minute,
       w.waiting_for
from fullpass.workers w
where w.last_beat_at > now() - interval '24 hours'
order by w.last_beat_at desc;
comment on view fullpass.ops_workers is
'Every worker that beat in the last 24 hours: alive or not, its jobs, memory against its limit, calls in flight and a minute. When to look: jobs wait though workers should be up. What to do: none alive: start one and read the log of the last; waiting_for: mend that; peak_rss_bytes near memory_limit_bytes: more memory or a lower MAX_CONCURRENT_JOBS.';
