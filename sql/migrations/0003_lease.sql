-- The lease protocol: every way a job changes hands, in one place.
--
--   pending ──claim──▶ processing ──complete──▶ complete
--      ▲                 │  │  │
--      │◀──── release ───┘  │  └──fail (final)──▶ failed
--      │◀──── fail (retry) ─┤
--      │◀──── sweep ────────┘  └──cancelled────▶ cancelled
--
-- Rules that hold in every function:
--   * lease_epoch only grows; whoever takes or ends a lease raises it, so an old holder matches
--     nothing from that moment on. attempts is never a token.
--   * Leases are measured by this database's clock (clock_timestamp()), nobody else's.
--   * Lock order: the processing_jobs row first, then passes, then user_profiles, then inserts.
--     Tickets are locked by claim and mend_queue only, and never waited for.
--   * Work a call is bounded.
--   * FP001 = the lease is lost; FP002 = cancellation was asked for. Callers match on these.

-- ---------------------------------------------------------------------------------------------
-- The line: who is served next
-- ---------------------------------------------------------------------------------------------

-- Users stand in line, not jobs: a ticket says "this user may have a job to run". A user with
-- 50,000 pending rows has one place, and none while a job of theirs runs.
--
--   Invariant: whoever makes a job pending, or frees a user who has pending ones, leaves a ticket
--   in the same transaction (the triggers below, so a plain INSERT does); whoever takes a ticket
--   away looks at that user's jobs after having locked it.
--
-- So no pending job is ever without a ticket, whatever commits in between. Tickets are hints
-- otherwise: too many, or one whose job is gone, cost a look and are dropped. Nobody but claim ever
-- locks one, so an app that keeps its transaction open holds up nothing.
create table if not exists fullpass.tickets (
    id bigint generated always as identity primary key,
    user_id uuid not null,
    ready boolean not null,           -- false: nothing to look for before due_at
    priority int not null,            -- at least that of the user's best due job
    queued_at timestamptz not null,   -- the place in line among equal priorities
    due_at timestamptz not null,
    bucket smallint not null,         -- the user's share of ROLLOUT_PERCENT, 0-99
    alone boolean not null default false,  -- its job must run alone: for an idle worker only
    reserved_by text,                 -- the worker that empties itself to take it
    reserved_until timestamptz
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
create index if not exists tickets_in_line
    on fullpass.tickets (priority desc, queued_at) where ready;
create index if not exists tickets_in_line_by_bucket
    on fullpass.tickets (bucket, priority desc, queued_at) where ready;
create index if not exists tickets_due on fullpass.tickets (due_at) where not ready;
create index if not exists tickets_by_user on fullpass.tickets (user_id);
create index if not exists tickets_reserved
    on fullpass.tickets (reserved_by) where reserved_by is not null;

-- A user's jobs in the order they are served: of equal priority, what was interrupted comes before
-- what never ran. Nulls in rows older than these columns hide nothing.
create index if not exists processing_jobs_next
    on public.processing_jobs
       (user_id, coalesce(priority, 0) desc, (started_at is null), coalesce(run_at, '-infinity'))
    where status = 'pending';
-- A worker's jobs, and all that run. No indexed column is ever touched by a heartbeat.
create index if not exists processing_jobs_running
    on public.processing_jobs (worker_id) where status = 'processing';

alter table fullpass.passes
    add column if not exists lease_epoch bigint,    -- the last one given, whatever the row says
    add column if not exists advanced_at timestamptz,  -- something new was saved: see fullpass.progress
    add column if not exists alone boolean not null default false,  -- its next attempt runs alone
    add column if not exists death_worker text,     -- who held the job at its last death
    add column if not exists death_epoch bigint,
    add column if not exists death_counted boolean; -- whether that death counted as a crash
create index if not exists passes_by_death
    on fullpass.passes (death_worker) where death_worker is not null;
alter table fullpass.workers
    add column if not exists peak_rss_bytes bigint,
    add column if not exists jobs int,
    add column if not exists lease_seconds float8,
    add column if not exists llm_held_by text;  -- what keeps llm_limit: ceiling, memory or rate

-- A stable share of users, 0-99.
create or replace function fullpass.bucket_of(p_user uuid) returns smallint
language sql immutable parallel safe as $$
    select (abs(hashtext(p_user::text)::bigint) % 100)::smallint
$$;

-- Tickets for inserted jobs, one a user for what is due and one for what is not yet. Definer's
-- rights: the app's role need not see schema fullpass. A job due at infinity belongs to one
-- process, which asks for it by id.
create or replace function fullpass.queue_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    insert into fullpass.tickets (user_id, ready, priority, queued_at, due_at, bucket)
    select f.user_id, f.due <= v_now, max(f.priority), least(min(f.due), v_now), min(f.due),
           fullpass.bucket_of(f.user_id)
    from (
        select user_id, coalesce(priority, 0) as priority, coalesce(run_at, '-infinity') as due
        from fresh where status = 'pending' and run_at is distinct from 'infinity'
    ) as f
    group by f.user_id, f.due <= v_now;
    if found then
        perform pg_notify('fullpass_jobs', '');
    end if;
    return null;
end
$$;
drop trigger if exists processing_jobs_wake on public.processing_jobs;
create or replace trigger processing_jobs_queue_inserted
    after insert on public.processing_jobs referencing new table as fresh
    for each statement execute function fullpass.queue_inserted();

-- A ticket for a job that goes back to the queue, or comes up in it, by whatever hand. What was
-- interrupted keeps its place: it is served before jobs that never ran.
create or replace function fullpass.queue_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    if new.run_at is distinct from 'infinity' then
        insert into fullpass.tickets (user_id, ready, priority, queued_at, due_at, bucket)
        values (new.user_id, coalesce(new.run_at, '-infinity') <= v_now, coalesce(new.priority, 0),
                case when new.started_at is null then least(new.run_at, v_now)
                     else least(new.created_at, v_now) end,
                coalesce(new.run_at, '-infinity'), fullpass.bucket_of(new.user_id));
    end if;
    return null;
end
$$;
create or replace trigger processing_jobs_queue_updated
    after update of status, priority, run_at, user_id on public.processing_jobs
    for each row when (
        new.status = 'pending' and (
            old.status is distinct from new.status or old.user_id <> new.user_id
            or coalesce(new.run_at, '-infinity') < coalesce(old.run_at, '-infinity')
            or coalesce(new.priority, 0) > coalesce(old.priority, 0)))
    execute function fullpass.queue_updated();

-- The user's next turn, at the back of the line, when a job of theirs stops running while others
-- wait. A claim that looks in this very moment sees the row locked and looks again soon.
create or replace function fullpass.next_turn(p_user uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into fullpass.tickets (user_id, ready, priority, queued_at, due_at, bucket)
    select p_user, true, coalesce(priority, 0), clock_timestamp(), clock_timestamp(),
           fullpass.bucket_of(p_user)
    from public.processing_jobs
    where user_id = p_user and status = 'pending'
    order by coalesce(priority, 0) desc limit 1
$$;
create or replace function fullpass.queue_stopped() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform fullpass.next_turn(old.user_id);
    return null;
end
$$;
create or replace trigger processing_jobs_queue_stopped
    after update of status on public.processing_jobs
    for each row when (old.status = 'processing' and new.status <> 'processing')
    execute function fullpass.queue_stopped();
-- A job that is deleted while it runs or waits leaves no profile that says for ever that one does.
-- Nothing of that may keep the app from deleting a person.
create or replace function fullpass.queue_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform fullpass.next_turn(u.user_id)
    from (select distinct user_id from gone where status = 'processing') as u;
    begin
        update public.user_profiles p set
            full_pass_status = case when memory_md is null then 'pending' else 'complete' end,
            import_stage = null
        where full_pass_status in ('pending', 'processing')
          and user_id in (select user_id from gone where status in ('pending', 'processing'))
          and not exists (select from public.processing_jobs j
                          where j.user_id = p.user_id and j.status in ('pending', 'processing'));
    exception when others then
        raise warning 'the profiles of deleted jobs cannot be corrected: %', sqlerrm;
    end;
    return null;
end
$$;
create or replace trigger processing_jobs_queue_deleted
    after delete on public.processing_jobs referencing old table as gone
    for each statement execute function fullpass.queue_deleted();

-- When the next of a user's pending jobs is due; null when there is none. Steps from priority to
-- priority through the index, so that many rows of one cost no more than one.
create or replace function fullpass.next_due(p_user uuid, p_above int default null)
returns timestamptz language sql stable as $$
    with recursive level as (
        (select coalesce(priority, 0) as priority from public.processing_jobs
         where user_id = p_user and status = 'pending'
         order by coalesce(priority, 0) desc limit 1)
        union all
        select n.priority
        from level l cross join lateral (
            select coalesce(j.priority, 0) as priority from public.processing_jobs j
            where j.user_id = p_user and j.status = 'pending'
              and coalesce(j.priority, 0) < l.priority
            order by coalesce(j.priority, 0) desc limit 1
        ) as n
    )
    select min(d.due)
    from level l
    cross join (values (false), (true)) as s (fresh)
    cross join lateral (
        select coalesce(j.run_at, '-infinity') as due from public.processing_jobs j
        where j.user_id = p_user and j.status = 'pending'
          and coalesce(j.priority, 0) = l.priority and (j.started_at is null) = s.fresh
        order by coalesce(j.run_at, '-infinity') limit 1
    ) as d
    where p_above is null or l.priority > p_above
$$;

-- Tickets for users who have pending jobs and none: after a restore with triggers off, say.
-- Workers call it at start and every hour; the result is how many were missing.
create or replace function fullpass.mend_queue() returns int language plpgsql as $$
declare
    v_count int;
begin
    insert into fullpass.tickets (user_id, ready, priority, queued_at, due_at, bucket)
    select p.user_id, true, p.priority, clock_timestamp(), clock_timestamp(),
           fullpass.bucket_of(p.user_id)
    from (
        select user_id, max(coalesce(priority, 0)) as priority from public.processing_jobs
        where status = 'pending' and run_at is distinct from 'infinity'
        group by user_id
    ) as p
    where not exists (select from fullpass.tickets t where t.user_id = p.user_id);
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
select fullpass.mend_queue();

-- ---------------------------------------------------------------------------------------------
-- What several of the functions below do
-- ---------------------------------------------------------------------------------------------

-- Adds to the job's timeline.
create or replace function fullpass.note_event(
    p_job public.processing_jobs, p_event text, p_step text default null, p_data jsonb default null
) returns void language sql as $$
    insert into fullpass.job_events (job_id, event, step, attempt, lease_epoch, worker_id, data)
    values ((p_job).id, p_event, coalesce(p_step, (p_job).current_step), (p_job).attempts,
            (p_job).lease_epoch, (p_job).worker_id, p_data)
$$;

-- What the app's user sees of a pass. Null leaves a column as it is; p_error '' clears it.
create or replace function fullpass.show_profile(
    p_user uuid, p_status text, p_percent int default null, p_stage text default null,
    p_error text default null, p_started_at timestamptz default null
) returns void language plpgsql as $$
begin
    for i in 1..2 loop
        update public.user_profiles set
            full_pass_status = coalesce(p_status, full_pass_status),
            progress_percent = coalesce(p_percent, progress_percent),
            import_stage = coalesce(p_stage, import_stage),
            full_pass_error = case when p_error is null then full_pass_error
                                   else nullif(left(p_error, 500), '') end,
            full_pass_started_at = coalesce(p_started_at, full_pass_started_at),
            full_pass_completed_at = case when p_status = 'complete' then clock_timestamp()
                                          else full_pass_completed_at end
        where user_id = p_user;
        exit when found;
        insert into public.user_profiles (
            user_id, full_pass_status, progress_percent, import_stage, full_pass_error,
            full_pass_started_at, full_pass_completed_at)
        values (p_user, coalesce(p_status, 'pending'), p_percent, p_stage,
                nullif(left(p_error, 500), ''), p_started_at,
                case when p_status = 'complete' then clock_timestamp() end)
        on conflict (user_id) do nothing;
        exit when found;
    end loop;
end
$$;

-- Locks the user's profile if nobody else does; false when somebody does. Claim and sweep come to
-- many users: an app that keeps one profile locked must not hold up the others.
create or replace function fullpass.profile_free(p_user uuid) returns boolean
language plpgsql as $$
begin
    perform from public.user_profiles where user_id = p_user for no key update skip locked;
    return found or not exists (select from public.user_profiles where user_id = p_user);
end
$$;

-- When a job that goes back to the queue is due. At once means: as due as it was, before what came
-- later. A job of one particular process (`fullpass run`) is due at infinity, where no other worker
-- takes it, and stays so.
create or replace function fullpass.due_at(p_job public.processing_jobs, p_seconds float8)
returns timestamptz language sql volatile as $$
    select case when (p_job).run_at = 'infinity' then 'infinity'
                when p_seconds <= 0 then least((p_job).run_at, clock_timestamp())
                else clock_timestamp() + make_interval(secs => p_seconds) end
$$;

-- Proves the lease and renews it, locking the row for the rest of the transaction: the first
-- statement of every transaction that writes on behalf of a job (promise 1). The transaction's own
-- time-outs stay below the lease, so that a frozen worker cannot hold the row past it.
create or replace function fullpass.hold(p_job uuid, p_epoch bigint, p_lease_seconds float8)
returns void language plpgsql as $$
declare
    v_cancel timestamptz;
    v_ms text := greatest(500, floor(p_lease_seconds * 500))::text;
begin
    perform set_config('statement_timeout', v_ms, true),
            set_config('lock_timeout', v_ms, true),
            set_config('idle_in_transaction_session_timeout', v_ms, true);
    update public.processing_jobs
    set lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds)
    where id = p_job and lease_epoch = p_epoch and status = 'processing'
    returning cancel_requested_at into v_cancel;
    if not found then
        raise exception 'the lease on job % (epoch %) is lost', p_job, p_epoch
            using errcode = 'FP001';
    elsif v_cancel is not null then
        raise exception 'job % was asked to cancel', p_job using errcode = 'FP002';
    end if;
end
$$;

-- Sets aside a job that the database does not let change hands (a tampered number, a constraint or
-- trigger of the app's): failed with what was said, so that nothing waits behind it. False when not
-- even that is let through. Trouble of the server's own is no job's fault and is raised.
create or replace function fullpass.set_aside(
    p_job public.processing_jobs, p_state text, p_problem text
) returns boolean language plpgsql as $$
declare
    v_error text := left(format('%s: the database refused to hand out this job: %s',
                                coalesce((p_job).current_step, 'start'), p_problem), 500);
begin
    if left(p_state, 2) not in ('21', '22', '23', '44', 'P0') then
        raise exception using errcode = p_state, message = p_problem;
    end if;
    update public.processing_jobs j set
        status = 'failed', error_message = v_error, completed_at = clock_timestamp(),
        lease_expires_at = null,
        lease_epoch = 1 + greatest(case when j.lease_epoch < 1e18 then j.lease_epoch end,
            (select p.lease_epoch from fullpass.passes p where p.job_id = j.id), 0)
    where j.id = (p_job).id;
    perform fullpass.note_event(p_job, 'failed', null, jsonb_build_object('error', v_error));
    begin
        perform fullpass.show_profile((p_job).user_id, 'failed', p_error => v_error,
                                      p_stage => 'failed');
    exception when others then
        raise warning 'job %: the profile cannot be written: %', (p_job).id, sqlerrm;
    end;
    return true;
exception when data_exception or integrity_constraint_violation or raise_exception then
    raise warning 'job % cannot be set aside: %', (p_job).id, sqlerrm;
    return false;
end
$$;

-- Recovers up to p_limit jobs whose lease ran out. The attempt is given back: a dead worker is not
-- the job's error (promise 9). What the death says of the job:
--   it left new receipts or chunks behind   nothing: crashes start again at 0
--   the worker beats and did not renew it   nothing: it never heard that it had the job
--   the worker died with several jobs       one of them may be at fault: each runs alone next
--   the worker died with this job alone     a crash; two of them quarantine it, with the evidence
-- Rows that were never leased are never swept.
create or replace function fullpass.sweep(p_limit int default 20) returns int
language plpgsql as $$
declare
    v public.processing_jobs;
    v_pass fullpass.passes;
    v_worker fullpass.workers;
    v_since timestamptz;
    v_progressed boolean;
    v_shared boolean;
    v_alive boolean;
    v_memory text;
    v_count int := 0;
begin
    for v in
        select * from public.processing_jobs j
        where j.status = 'processing'
          and coalesce(j.lease_expires_at, '-infinity') < clock_timestamp()
          and (j.lease_epoch > 0
               or exists (select from fullpass.passes p
                          where p.job_id = j.id and p.lease_epoch is not null))
        order by j.lease_expires_at
        limit p_limit for update of j skip locked
    loop
        begin
            continue when not fullpass.profile_free(v.user_id);
            v_count := v_count + 1;
            select * into v_pass from fullpass.passes where job_id = v.id for update;
            select * into v_worker from fullpass.workers where worker_id = v.worker_id;
            -- A beat renews all that the worker knows of, or meets a transaction of its own, which
            -- did so less than half a lease ago.
            v_alive := coalesce(v_worker.last_beat_at
                                + make_interval(secs => v_worker.lease_seconds / 2)
                                > v.lease_expires_at, false);
            v_since := coalesce(v_pass.last_death_at, v_pass.claimed_at, v.started_at);
            v_progressed := coalesce(v_pass.advanced_at > v_since, false)
                or exists (select from fullpass.llm_calls c
                           where c.job_id = v.id and c.created_at > v_since);
            v_shared := v.worker_id is not null and (
                exists (select from public.processing_jobs o
                        where o.worker_id = v.worker_id and o.status = 'processing'
                          and o.id <> v.id)
                or exists (select from fullpass.passes d
                           where d.death_worker = v.worker_id and d.job_id <> v.id));
            v.crashes := case when v_progressed then 0
                              else coalesce(v.crashes, 0) + (not v_shared and not v_alive)::int end;
            v.attempts := greatest(0, coalesce(v.attempts, 0) - 1);
            update fullpass.passes set
                last_death_at = clock_timestamp(), death_worker = v.worker_id,
                death_epoch = v.lease_epoch, death_counted = not v_progressed and not v_shared,
                alone = v_shared or not v_progressed
            where job_id = v.id and not v_alive;
            if v.cancel_requested_at is not null then
                perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
            elsif v.crashes >= 2 then
                v_memory := case when v_worker.peak_rss_bytes is null then 'its memory is not known'
                    else format('peak memory %s MB of %s MB%s', v_worker.peak_rss_bytes >> 20,
                                coalesce((v_worker.memory_limit_bytes >> 20)::text, '?'),
                                case when v_worker.peak_rss_bytes
                                          > 0.85 * v_worker.memory_limit_bytes
                                     then ': it probably ran out of memory' else '' end) end;
                perform fullpass.end_job(v, 'failed', 'quarantined', format(
                    '%s: the worker died twice with this job alone and without any progress; the '
                    'last was %s, %s. The job is set aside: look at its memory and its input, then '
                    'run fullpass.retry(%L)',
                    coalesce(v.current_step, 'start'), v.worker_id, v_memory, v.id),
                    jsonb_build_object(
                        'crashes', v.crashes, 'peak_rss_bytes', v_worker.peak_rss_bytes,
                        'memory_limit_bytes', v_worker.memory_limit_bytes,
                        'last_beat_at', v_worker.last_beat_at));
            else
                update public.processing_jobs set
                    status = 'pending', lease_epoch = coalesce(lease_epoch, v_pass.lease_epoch) + 1,
                    lease_expires_at = null, attempts = v.attempts, crashes = v.crashes,
                    worker_id = null, run_at = fullpass.due_at(v, 0)
                where id = v.id;
                perform fullpass.note_event(v, 'recovered', null, jsonb_build_object(
                    'crashes', v.crashes, 'progressed', v_progressed, 'shared', v_shared,
                    'alive', v_alive, 'lease_expired_at', v.lease_expires_at,
                    'peak_rss_bytes', v_worker.peak_rss_bytes));
                perform fullpass.show_profile(v.user_id, 'pending');
            end if;
        exception when others then
            perform fullpass.set_aside(v, sqlstate, sqlerrm);
        end;
    end loop;
    return v_count;
end
$$;

-- A worker that still beats did not die: what its lost lease was taken for is taken back.
create or replace function fullpass.excuse(p_worker text, p_job uuid, p_epoch bigint)
returns void language plpgsql as $$
declare
    v public.processing_jobs;
    v_counted boolean;
begin
    select death_counted into v_counted from fullpass.passes
    where job_id = p_job and death_worker = p_worker and death_epoch = p_epoch;
    if not found then
        return;
    end if;
    select * into v from public.processing_jobs where id = p_job for update skip locked;
    if not found then
        return;
    end if;
    update fullpass.passes set death_worker = null, death_epoch = null, alone = false
    where job_id = p_job and death_worker = p_worker and death_epoch = p_epoch;
    if v_counted then
        v.crashes := greatest(0, v.crashes - 1);
        update public.processing_jobs set crashes = v.crashes where id = p_job;
        if v.status = 'failed' and v.crashes < 2 then  -- quarantined on wrong evidence
            perform fullpass.retry(p_job);
        end if;
    end if;
    perform fullpass.note_event(v, 'excused', null, jsonb_build_object('alive', p_worker));
end
$$;

-- Writes a final state to a row the caller has locked: job, pass, profile, timeline. Of v it takes
-- attempts, crashes and result as the caller left them.
create or replace function fullpass.end_job(
    v public.processing_jobs, p_status text, p_event text, p_error text, p_data jsonb default null
) returns void language plpgsql as $$
begin
    update public.processing_jobs set
        status = p_status, lease_epoch = coalesce(lease_epoch, 0) + 1, lease_expires_at = null,
        attempts = v.attempts, crashes = v.crashes, result = v.result,
        error_message = p_error, completed_at = clock_timestamp(),
        current_step = case when p_status = 'complete' then 'complete' else current_step end,
        progress = case when p_status = 'complete' then 100 else progress end
    where id = v.id;
    update fullpass.passes set waiting_since = null, waiting_for = null
    where job_id = v.id and (waiting_since, waiting_for) is distinct from (null, null);
    perform fullpass.note_event(v, p_event, null,
        coalesce(p_data, '{}') || jsonb_strip_nulls(jsonb_build_object('error', p_error)));
    if p_status = 'cancelled' then
        -- While another job of this user runs, the profile is that job's to write.
        if exists (select from public.processing_jobs
                   where user_id = v.user_id and status = 'processing') then
            return;
        end if;
        perform fullpass.show_profile(v.user_id, 'pending', p_error => '', p_stage => 'cancelled');
        update public.user_profiles set full_pass_status = 'complete'
        where user_id = v.user_id and memory_md is not null;
    elsif p_status = 'failed' then
        perform fullpass.show_profile(v.user_id, 'failed', p_error => p_error, p_stage => 'failed');
    else
        perform fullpass.show_profile(v.user_id, 'complete', 100, 'complete', '');
    end if;
end
$$;

-- Writes a worker into a pending job that the caller has locked. Raises unique_violation when the
-- user runs another.
create or replace function fullpass.take(
    v public.processing_jobs, p_worker text, p_lease_seconds float8, p_version text
) returns public.processing_jobs language plpgsql as $$
begin
    update public.processing_jobs j set
        status = 'processing',
        lease_epoch = 1 + greatest(j.lease_epoch, (select p.lease_epoch from fullpass.passes p
                                                   where p.job_id = j.id), 0),
        lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
        worker_id = p_worker, pipeline_version = p_version,
        progress = case when started_at is null then 0 else coalesce(progress, 0) end,
        started_at = coalesce(started_at, clock_timestamp()),
        attempts = coalesce(attempts, 0) + 1, completed_at = null
    where j.id = v.id
    returning * into v;
    insert into fullpass.passes as p (job_id, user_id, lease_epoch, claimed_at)
    values (v.id, v.user_id, v.lease_epoch, clock_timestamp())
    on conflict (job_id) do update
        set lease_epoch = excluded.lease_epoch, claimed_at = excluded.claimed_at;
    perform fullpass.note_event(v, 'claimed');
    perform fullpass.show_profile(v.user_id, 'processing', v.progress, 'starting', '', v.started_at);
    return v;
end
$$;

-- Gives up to p_limit due jobs to a worker; with p_only, that very job if it is pending, due or not.
-- Sweeps first, so recovery needs no leader.
--
-- Takes the first ticket in line that nobody holds, then the best due job of its user. A ticket
-- that leads to nothing is dropped or put away until there may be something; at most 200 are looked
-- at in a call, and a call that stops there says so to all workers.
create or replace function fullpass.claim(
    p_worker text, p_lease_seconds float8, p_version text,
    p_rollout_percent int default 100, p_daily_limit int default null, p_only uuid default null,
    p_limit int default 1
) returns setof public.processing_jobs language plpgsql as $$
declare
    v public.processing_jobs;
    v_ticket fullpass.tickets;
    v_busy boolean;           -- this worker runs something already
    v_lone boolean;           -- and that must run alone
    v_running uuid;
    v_taken int := 0;
    v_again timestamptz;
    v_soon interval := interval '200 milliseconds';
    v_now timestamptz := clock_timestamp();
    v_tomorrow timestamptz := date_trunc('day', now() at time zone 'utc') at time zone 'utc'
                              + interval '1 day';
begin
    perform fullpass.sweep();
    select count(*) > 0, coalesce(bool_or(p.alone), false) into v_busy, v_lone
    from public.processing_jobs j left join fullpass.passes p on p.job_id = j.id
    where j.worker_id = p_worker and j.status = 'processing';
    if v_lone then
        return;
    end if;
    if p_only is not null then
        select * into v from public.processing_jobs j
        where j.id = p_only and j.status = 'pending'
          and not exists (select from public.processing_jobs r
                          where r.user_id = j.user_id and r.status = 'processing')
        for update of j skip locked;
        if found then
            return next fullpass.take(v, p_worker, p_lease_seconds, p_version);
        end if;
        return;
    end if;

    -- A job that must run alone waits for this worker to be empty: take nothing more until then.
    if v_busy then
        update fullpass.tickets set reserved_until = v_now + make_interval(secs => p_lease_seconds)
        where reserved_by = p_worker and ready and reserved_until > v_now;
        if found then
            return;
        end if;
    end if;

    -- What has come due steps into the line.
    update fullpass.tickets t set
        ready = true, queued_at = t.due_at,
        priority = greatest(t.priority, (
            select coalesce(j.priority, 0) from public.processing_jobs j
            where j.user_id = t.user_id and j.status = 'pending'
            order by coalesce(j.priority, 0) desc limit 1))
    where t.id in (select d.id from fullpass.tickets d
                   where not d.ready and d.due_at <= v_now
                   order by d.due_at limit 100 for update skip locked);

    for i in 1..200 + p_limit loop
        if p_rollout_percent >= 100 then
            select * into v_ticket from fullpass.tickets t
            where t.ready and not (v_busy and t.alone and t.reserved_until > v_now)
            order by t.priority desc, t.queued_at
            limit 1 for update skip locked;
        else
            select * into v_ticket from fullpass.tickets t
            where t.ready and t.id = any (array(
                select c.id
                from generate_series(0, p_rollout_percent - 1) as b
                cross join lateral (
                    select o.id, o.priority, o.queued_at from fullpass.tickets o
                    where o.ready and o.bucket = b
                      and not (v_busy and o.alone and o.reserved_until > v_now)
                    order by o.priority desc, o.queued_at limit 1) as c
                order by c.priority desc, c.queued_at limit 20))
            order by t.priority desc, t.queued_at
            limit 1 for update skip locked;
        end if;
        if not found then
            return;
        end if;
        -- All tickets of a user say the same: this one is enough.
        delete from fullpass.tickets where id in (
            select t.id from fullpass.tickets t
            where t.user_id = v_ticket.user_id and t.id <> v_ticket.id
            limit 500 for update skip locked);

        -- The user runs a job: the end of that leaves a ticket. A locked row may be just ending.
        select j.id, greatest(coalesce(j.lease_expires_at, v_now + interval '1 minute'),
                              v_now + v_soon)
        into v_running, v_again
        from public.processing_jobs j
        where j.user_id = v_ticket.user_id and j.status = 'processing' limit 1;
        if found then
            perform from public.processing_jobs
            where id = v_running and status = 'processing' for share skip locked;
            update fullpass.tickets set
                ready = false, due_at = case when found then v_again else v_now + v_soon end
            where id = v_ticket.id;
            continue;
        end if;

        select * into v from public.processing_jobs j
        where j.user_id = v_ticket.user_id and j.status = 'pending'
          and coalesce(j.run_at, '-infinity') <= v_now
        order by coalesce(j.priority, 0) desc, (j.started_at is null),
                 coalesce(j.run_at, '-infinity')
        limit 1 for update skip locked;
        if not found then
            v_again := fullpass.next_due(v_ticket.user_id);
            if v_again is null or v_again = 'infinity' then
                delete from fullpass.tickets where id = v_ticket.id;
            else
                update fullpass.tickets set
                    ready = false, due_at = greatest(v_again, v_now + v_soon)
                where id = v_ticket.id;
            end if;
            continue;
        end if;
        if coalesce(v.priority, 0) < v_ticket.priority then
            -- Only a later or vanished job was so urgent: to the place that this one has.
            update fullpass.tickets set priority = coalesce(v.priority, 0) where id = v_ticket.id;
            v_again := fullpass.next_due(v_ticket.user_id, coalesce(v.priority, 0));
            if v_again < 'infinity' then
                insert into fullpass.tickets (user_id, ready, priority, queued_at, due_at, bucket)
                values (v.user_id, false, v_ticket.priority, v_again,
                        greatest(v_again, v_now + v_soon), v_ticket.bucket);
            end if;
            continue;
        end if;
        if not fullpass.profile_free(v.user_id) then
            update fullpass.tickets set ready = false, due_at = v_now + v_soon
            where id = v_ticket.id;
            continue;
        end if;
        v_lone := exists (select from fullpass.passes where job_id = v.id and alone);
        if v_lone and v_busy then
            update fullpass.tickets set
                alone = true, reserved_by = p_worker,
                reserved_until = v_now + make_interval(secs => p_lease_seconds)
            where id = v_ticket.id;
            return;
        end if;
        -- A user's jobs beyond the day's allowance wait until tomorrow; no attempt is used.
        if v.started_at is null and p_daily_limit is not null and (
            select count(*) from public.processing_jobs d
            where d.user_id = v.user_id and d.started_at >= v_tomorrow - interval '1 day'
        ) >= p_daily_limit then
            perform fullpass.postpone(v.user_id, v_tomorrow, p_daily_limit);
            update fullpass.tickets set ready = false, due_at = v_tomorrow where id = v_ticket.id;
            continue;
        end if;
        begin
            v := fullpass.take(v, p_worker, p_lease_seconds, p_version);
        exception
            when unique_violation then  -- a job of this user was taken past the line
                update fullpass.tickets set ready = false, due_at = v_now + v_soon
                where id = v_ticket.id;
                continue;
            when others then
                continue when fullpass.set_aside(v, sqlstate, sqlerrm);
                update fullpass.tickets set ready = false, due_at = v_now + interval '1 minute'
                where id = v_ticket.id;
                continue;
        end;
        if exists (select from public.processing_jobs
                   where user_id = v.user_id and status = 'pending') then
            update fullpass.tickets set
                ready = false, due_at = v.lease_expires_at, alone = false, reserved_by = null
            where id = v_ticket.id;
        else
            delete from fullpass.tickets where id = v_ticket.id;
        end if;
        return next v;
        v_taken := v_taken + 1;
        if v_lone or v_taken >= p_limit then
            return;
        end if;
        v_busy := true;
    end loop;
    perform pg_notify('fullpass_jobs', '');
end
$$;

-- Puts a user's due jobs that never ran off until p_until, and says so on the first hundred: the
-- user's only ticket keeps the rest back.
create or replace function fullpass.postpone(p_user uuid, p_until timestamptz, p_daily_limit int)
returns void language plpgsql as $$
declare
    v public.processing_jobs;
begin
    for v in
        update public.processing_jobs j set
            run_at = p_until,
            current_step = format('waiting: %s jobs a day are allowed', p_daily_limit)
        where j.id in (
            select c.id from public.processing_jobs c
            where c.user_id = p_user and c.status = 'pending' and c.started_at is null
              and coalesce(c.run_at, '-infinity') <= clock_timestamp()
            order by coalesce(c.priority, 0) desc, (c.started_at is null),
                     coalesce(c.run_at, '-infinity')
            limit 100 for update skip locked)
        returning j.*
    loop
        perform fullpass.note_event(v, 'waited',
            p_data => jsonb_build_object('for', 'daily limit', 'until', p_until));
    end loop;
end
$$;

-- Renews a worker's leases and tells it of each job: held, cancel, or lost. A row that is locked
-- belongs to one of the worker's own transactions, which renewed it already: held. Also the
-- worker's sign of life.
create or replace function fullpass.beat(
    p_worker text, p_jobs uuid[], p_epochs bigint[], p_lease_seconds float8, p_vitals jsonb
) returns table (job_id uuid, verdict text) language plpgsql as $$
begin
    insert into fullpass.workers as w (
        worker_id, version, rss_bytes, memory_limit_bytes, loop_lag_ms, llm_in_flight, llm_limit,
        waiting_for, peak_rss_bytes, llm_held_by, jobs, lease_seconds)
    select p_worker, v.*, cardinality(p_jobs), p_lease_seconds from jsonb_to_record(p_vitals) as v (
        version text, rss_bytes bigint, memory_limit_bytes bigint, loop_lag_ms real,
        llm_in_flight int, llm_limit int, waiting_for text, peak_rss_bytes bigint, llm_held_by text)
    on conflict (worker_id) do update set
        last_beat_at = clock_timestamp(), rss_bytes = excluded.rss_bytes, jobs = excluded.jobs,
        peak_rss_bytes = greatest(w.peak_rss_bytes, excluded.peak_rss_bytes, excluded.rss_bytes),
        memory_limit_bytes = excluded.memory_limit_bytes, loop_lag_ms = excluded.loop_lag_ms,
        llm_in_flight = excluded.llm_in_flight, llm_limit = excluded.llm_limit,
        waiting_for = excluded.waiting_for, llm_held_by = excluded.llm_held_by,
        lease_seconds = excluded.lease_seconds;
    return query
    with mine as (
        select * from unnest(p_jobs, p_epochs) as m (id, epoch)
    ), free as (
        select j.id, j.cancel_requested_at from public.processing_jobs j
        join mine m on m.id = j.id and m.epoch = j.lease_epoch
        where j.status = 'processing'
        for update of j skip locked
    ), renewed as (
        update public.processing_jobs j
        set lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds)
        from free where j.id = free.id
        returning j.id, free.cancel_requested_at
    )
    select m.id,
           case when r.id is not null and r.cancel_requested_at is not null then 'cancel'
                when r.id is not null or j.id is not null then 'held'
                else 'lost' end
    from mine m
    left join renewed r on r.id = m.id
    left join public.processing_jobs j
        on j.id = m.id and j.lease_epoch = m.epoch and j.status = 'processing';
    perform fullpass.excuse(p_worker, m.id, m.epoch)
    from unnest(p_jobs, p_epochs) as m (id, epoch)
    where not exists (select from public.processing_jobs j
                      where j.id = m.id and j.lease_epoch = m.epoch);
end
$$;

-- Locks the caller's job for an ending, or says why it is not the caller's to end.
create or replace function fullpass.grip(p_job uuid, p_epoch bigint)
returns public.processing_jobs language plpgsql as $$
declare
    v public.processing_jobs;
begin
    select * into v from public.processing_jobs
    where id = p_job and lease_epoch = p_epoch and status = 'processing' for update;
    if not found then
        raise exception 'the lease on job % (epoch %) is lost', p_job, p_epoch
            using errcode = 'FP001';
    end if;
    return v;
end
$$;

-- The pass is done. p_cost goes to the profile as jsonb or text, whichever the app's column is: the
-- assignment converts.
create or replace function fullpass.complete(
    p_job uuid, p_epoch bigint, p_result jsonb, p_cost jsonb
) returns void language plpgsql as $$
declare
    v public.processing_jobs := fullpass.grip(p_job, p_epoch);
begin
    v.result := p_result;
    v.crashes := 0;
    perform fullpass.end_job(v, 'complete', 'completed', null);
    update public.user_profiles set import_cost_json = p_cost where user_id = v.user_id;
end
$$;

-- The pass met an error of its own: tried again after an exponential back-off with jitter while
-- attempts remain, final otherwise. Returns 'retry' or 'failed'.
create or replace function fullpass.fail(
    p_job uuid, p_epoch bigint, p_error text, p_retry boolean,
    p_result jsonb default null, p_backoff_seconds float8 default 10
) returns text language plpgsql as $$
declare
    v public.processing_jobs := fullpass.grip(p_job, p_epoch);
    v_delay float8 :=
        least(3600, p_backoff_seconds * power(2, greatest(0, coalesce(v.attempts, 1) - 1)))
        * (0.75 + random() / 2);
begin
    if v.cancel_requested_at is not null then
        perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
        return 'cancelled';
    end if;
    v.result := coalesce(p_result, v.result);
    if p_retry and v.attempts < coalesce(v.max_attempts, 5) then
        update public.processing_jobs set
            status = 'pending', lease_epoch = lease_epoch + 1, lease_expires_at = null,
            worker_id = null, run_at = fullpass.due_at(v, v_delay), error_message = p_error,
            result = v.result
        where id = p_job;
        update fullpass.passes set alone = false where job_id = p_job and alone;
        perform fullpass.note_event(v, 'retried', null,
            jsonb_build_object('error', p_error, 'after_seconds', v_delay));
        perform fullpass.show_profile(v.user_id, 'pending', p_stage => 'waiting to try again');
        return 'retry';
    end if;
    perform fullpass.end_job(v, 'failed', 'failed', p_error);
    return 'failed';
end
$$;

-- Gives a job back with its attempt: the worker drains, or the world is not ready. Waiting never
-- uses up attempts, but a job that has only waited for p_max_wait_seconds ends as failed.
-- Returns 'released', 'cancelled' or 'failed'.
create or replace function fullpass.release(
    p_job uuid, p_epoch bigint, p_seconds float8, p_reason text, p_max_wait_seconds float8
) returns text language plpgsql as $$
declare
    v public.processing_jobs := fullpass.grip(p_job, p_epoch);
    v_pass fullpass.passes;
    v_waits boolean := p_seconds > 0;
begin
    v.attempts := greatest(0, coalesce(v.attempts, 0) - 1);
    if v.cancel_requested_at is not null then
        perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
        return 'cancelled';
    end if;
    select * into v_pass from fullpass.passes where job_id = p_job for update;
    if v_waits and (v_pass.advanced_at > v_pass.waiting_since
                    or exists (select from fullpass.llm_calls c
                               where c.job_id = p_job and c.created_at > v_pass.waiting_since
                                 and c.usable and c.prompt_version <> 'probe')) then
        v_pass.waiting_since := null;  -- it did not only wait
    end if;
    if v_waits and v_pass.waiting_since
                   < clock_timestamp() - make_interval(secs => p_max_wait_seconds) then
        perform fullpass.end_job(v, 'failed', 'failed', format(
            '%s: waited since %s for: %s', coalesce(v.current_step, 'start'),
            v_pass.waiting_since, p_reason));
        return 'failed';
    end if;
    update fullpass.passes set
        waiting_since = case when v_waits then coalesce(v_pass.waiting_since, clock_timestamp())
                             else v_pass.waiting_since end,
        waiting_for = case when v_waits then p_reason end,
        alone = false
    where job_id = p_job;
    update public.processing_jobs set
        status = 'pending', lease_epoch = lease_epoch + 1, lease_expires_at = null,
        worker_id = null, attempts = v.attempts, run_at = fullpass.due_at(v, p_seconds)
    where id = p_job;
    perform fullpass.note_event(v, case when v_waits then 'waited' else 'released' end, null,
        jsonb_build_object('reason', p_reason, 'seconds', p_seconds));
    perform fullpass.show_profile(v.user_id, 'pending',
        p_stage => case when v_waits then 'waiting' else 'resuming' end);
    if not v_waits then
        perform pg_notify('fullpass_jobs', '');
    end if;
    return 'released';
end
$$;

-- The holder stops for a cancellation.
create or replace function fullpass.yield_cancelled(p_job uuid, p_epoch bigint)
returns void language plpgsql as $$
declare
    v public.processing_jobs := fullpass.grip(p_job, p_epoch);
begin
    perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
end
$$;

-- ---------------------------------------------------------------------------------------------
-- For apps, in any language
-- ---------------------------------------------------------------------------------------------

-- Queues an export. A live job for the same path is returned instead of making a second.
create or replace function fullpass.enqueue(
    p_user_id uuid, p_storage_path text, p_priority smallint default 0,
    p_run_at timestamptz default now(), p_file_type text default null
) returns uuid language plpgsql as $$
declare
    v_id uuid;
begin
    for i in 1..3 loop
        select id into v_id from public.processing_jobs
        where user_id = p_user_id and storage_path = p_storage_path
          and status in ('pending', 'processing')
        order by status limit 1;
        if found then
            return v_id;
        end if;
        insert into public.processing_jobs (user_id, storage_path, priority, run_at, file_type)
        values (p_user_id, p_storage_path, p_priority, p_run_at, p_file_type)
        on conflict do nothing
        returning id into v_id;
        if found then
            return v_id;
        end if;
    end loop;
    raise exception 'could not enqueue %: the row keeps changing hands', p_storage_path;
end
$$;

-- Cancels a pending job at once and asks a running one to stop; false when there is nothing to.
create or replace function fullpass.cancel(p_job_id uuid) returns boolean
language plpgsql as $$
declare
    v public.processing_jobs;
begin
    select * into v from public.processing_jobs
    where id = p_job_id and status in ('pending', 'processing') for update;
    if not found then
        return false;
    end if;
    if v.status = 'pending' then
        perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
    else
        update public.processing_jobs
        set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
        where id = p_job_id;
        perform fullpass.note_event(v, 'cancel_requested');
    end if;
    return true;
end
$$;

-- Puts a failed or cancelled job back in the queue with fresh budgets; it resumes from its rows.
create or replace function fullpass.retry(p_job_id uuid) returns boolean
language plpgsql as $$
declare
    v public.processing_jobs;
begin
    begin
        update public.processing_jobs set
            status = 'pending', attempts = 0, crashes = 0, run_at = clock_timestamp(),
            cancel_requested_at = null, completed_at = null, error_message = null,
            worker_id = null, lease_epoch = coalesce(lease_epoch, 0) + 1, lease_expires_at = null
        where id = p_job_id and status in ('failed', 'cancelled')
        returning * into v;
    exception when unique_violation then
        return false;  -- the same path is pending already
    end;
    if v.id is null then
        return false;
    end if;
    update fullpass.passes set last_death_at = null, waiting_since = null, waiting_for = null
    where job_id = p_job_id;
    -- What failed gets a new chance: useless receipts are not consulted, failed chunks are unread,
    -- and so is what a model refused to any job of theirs: another model may be asked now.
    update fullpass.llm_calls set call_key = null where job_id = p_job_id and not usable;
    -- A part of such a chunk that still waits is not all of it: the chunk is planned anew, whole.
    update fullpass.windows w set state = 'dropped'
    where w.user_id = v.user_id and w.state = 'planned' and w.first_ordinal is not null
      and exists (select from fullpass.chunk_outcomes o
                  where o.user_id = w.user_id and o.content_hash = w.content_hashes[1]
                    and (o.outcome = 'refused' or o.outcome = 'failed' and o.job_id = p_job_id));
    delete from fullpass.chunk_outcomes
    where user_id = v.user_id
      and (outcome = 'refused' or outcome = 'failed' and job_id = p_job_id);
    perform fullpass.note_event(v, 'retry_requested');
    -- While another job of this user runs, the profile is that job's to write.
    if not exists (select from public.processing_jobs
                   where user_id = v.user_id and status = 'processing') then
        perform fullpass.show_profile(v.user_id, 'pending', p_stage => 'queued', p_error => '');
    end if;
    perform pg_notify('fullpass_jobs', '');
    return true;
end
$$;

-- Erases everything derived from a person and says how much. Token and cost totals stay, without
-- content. A job of theirs that runs is cancelled first; its late receipts keep their cost only.
create or replace function fullpass.forget(p_user_id uuid) returns jsonb
language plpgsql as $$
declare
    v_counts jsonb := '{}';
    v_count bigint;
    v_table text;
begin
    perform fullpass.cancel(id) from public.processing_jobs
    where user_id = p_user_id and status in ('pending', 'processing');
    update public.processing_jobs set
        status = 'cancelled', lease_epoch = lease_epoch + 1, lease_expires_at = null,
        completed_at = clock_timestamp()
    where user_id = p_user_id and status = 'processing';
    if to_regclass('fullpass.staged_facts') is not null then  -- of a later migration
        delete from fullpass.staged_facts where user_id = p_user_id;
        get diagnostics v_count = row_count;
        v_counts := v_counts || jsonb_build_object('staged_facts', v_count);
    end if;
    insert into fullpass.erasures (user_id) values (p_user_id)
    on conflict (user_id) do update set erased_at = clock_timestamp();
    v_counts := v_counts || jsonb_build_object(
        'batch_requests_blinded', fullpass.forget_batches(p_user_id));
    delete from fullpass.staged_chunks
    where job_id in (select id from public.processing_jobs where user_id = p_user_id);
    delete from public.conversation_chunks where user_id = p_user_id;
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('conversation_chunks', v_count);
    foreach v_table in array array['facts', 'extracted_facts', 'chunk_outcomes', 'windows',
                                   'conversations', 'memories', 'outbox'] loop
        execute format('delete from fullpass.%I where user_id = $1', v_table) using p_user_id;
        get diagnostics v_count = row_count;
        v_counts := v_counts || jsonb_build_object(v_table, v_count);
    end loop;
    update fullpass.llm_calls set call_key = null, response = null, request_id = null
    where user_id = p_user_id and (call_key is not null or response is not null);
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('llm_calls_blanked', v_count);
    update fullpass.passes set ingest = null where user_id = p_user_id;
    update public.processing_jobs set result = null, error_message = null
    where user_id = p_user_id;
    update public.user_profiles set
        memory_md = null, soul_md = null, identity_md = null, user_md = null, agents_md = null,
        tools_md = null, soulprint_text = null, full_pass_status = 'pending',
        full_pass_error = null, progress_percent = null, import_stage = null
    where user_id = p_user_id;
    get diagnostics v_count = row_count;
    return v_counts || jsonb_build_object('user_profiles_cleared', v_count);
end
$$;

-- The same for RPC clients, who see schema public only: for the service role, which has no rights in
-- schema fullpass, hence definer's rights. Built-in names come first in the path; `public` is on it
-- for the app's own triggers.
create or replace function public.fullpass_enqueue(
    user_id uuid, storage_path text, priority smallint default 0,
    run_at timestamptz default now(), file_type text default null
) returns uuid
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select fullpass.enqueue(user_id, storage_path, priority, run_at, file_type)
$$;
create or replace function public.fullpass_cancel(job_id uuid) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select fullpass.cancel(job_id)
$$;
create or replace function public.fullpass_retry(job_id uuid) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select fullpass.retry(job_id)
$$;
create or replace function public.fullpass_forget(user_id uuid) returns jsonb
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select fullpass.forget(user_id)
$$;
-- Supabase gives functions in `public` to anon and authenticated by name, not by way of PUBLIC.
do $$
declare
    v_role text;
    v_functions text :=
        'public.fullpass_enqueue(uuid, text, smallint, timestamptz, text), '
        'public.fullpass_cancel(uuid), public.fullpass_retry(uuid), public.fullpass_forget(uuid)';
begin
    execute format('revoke execute on function %s from public', v_functions);
    for v_role in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
        execute format('revoke execute on function %s from %I', v_functions, v_role);
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        execute format('grant execute on function %s to service_role', v_functions);
    end if;
end
$$;
