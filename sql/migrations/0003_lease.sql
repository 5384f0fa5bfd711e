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
--   * Work a call is bounded.
--   * FP001 = the lease is lost; FP002 = cancellation was asked for. Callers match on these.

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
    p_error text default null
) returns void language plpgsql as $$
begin
    insert into public.user_profiles (user_id) values (p_user) on conflict (user_id) do nothing;
    update public.user_profiles set
        full_pass_status = coalesce(p_status, full_pass_status),
        progress_percent = coalesce(p_percent, progress_percent),
        import_stage = coalesce(p_stage, import_stage),
        full_pass_error = case when p_error is null then full_pass_error
                               else nullif(left(p_error, 500), '') end,
        full_pass_completed_at = case when p_status = 'complete' then clock_timestamp()
                                      else full_pass_completed_at end
    where user_id = p_user;
end
$$;

-- When a job that goes back to the queue is due. A job of one particular process (`fullpass run`)
-- is due at infinity, where no other worker takes it, and stays so.
create or replace function fullpass.due_at(p_job public.processing_jobs, p_seconds float8)
returns timestamptz language sql volatile as $$
    select case when (p_job).run_at = 'infinity' then 'infinity'
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

-- Recovers up to p_limit jobs whose lease ran out. The attempt is given back: a dead worker is not
-- the job's error. A death counts as a crash only when it left nothing new behind since the one
-- before; two such deaths quarantine the job with what is known about them.
create or replace function fullpass.sweep(p_limit int default 20) returns int
language plpgsql as $$
declare
    v public.processing_jobs;
    v_pass fullpass.passes;
    v_progressed boolean;
    v_count int := 0;
begin
    for v in
        select * from public.processing_jobs
        where status = 'processing' and lease_epoch > 0 and lease_expires_at < clock_timestamp()
        order by lease_expires_at
        limit p_limit for update skip locked
    loop
        v_count := v_count + 1;
        select * into v_pass from fullpass.passes where job_id = v.id for update;
        v_progressed := coalesce(
            greatest(v_pass.last_progress_at,
                     (select max(created_at) from fullpass.llm_calls where job_id = v.id))
            > coalesce(v_pass.last_death_at, v_pass.claimed_at, v.started_at), false);
        update fullpass.passes set last_death_at = clock_timestamp() where job_id = v.id;
        v.crashes := case when v_progressed then 0 else coalesce(v.crashes, 0) + 1 end;
        v.attempts := greatest(0, coalesce(v.attempts, 0) - 1);
        if v.cancel_requested_at is not null then
            perform fullpass.end_job(v, 'cancelled', 'cancelled', null);
        elsif v.crashes >= 2 then
            perform fullpass.end_job(v, 'failed', 'quarantined', format(
                '%s: the worker died twice without any progress; last worker %s. The job is set '
                'aside: look at its memory and its input, then run fullpass.retry(%L)',
                coalesce(v.current_step, 'start'), v.worker_id, v.id));
        else
            update public.processing_jobs set
                status = 'pending', lease_epoch = lease_epoch + 1, lease_expires_at = null,
                attempts = v.attempts, crashes = v.crashes, worker_id = null,
                run_at = fullpass.due_at(v, 0)
            where id = v.id;
            perform fullpass.note_event(v, 'recovered', null, jsonb_build_object(
                'crashes', v.crashes, 'progressed', v_progressed,
                'lease_expired_at', v.lease_expires_at));
            perform fullpass.show_profile(v.user_id, 'pending');
        end if;
    end loop;
    return v_count;
end
$$;

-- Writes a final state to a row the caller has locked: job, pass, profile, timeline.
create or replace function fullpass.end_job(
    v public.processing_jobs, p_status text, p_event text, p_error text, p_data jsonb default null
) returns void language plpgsql as $$
begin
    update public.processing_jobs set
        status = p_status, lease_epoch = lease_epoch + 1, lease_expires_at = null,
        attempts = v.attempts, crashes = v.crashes,
        error_message = p_error, completed_at = clock_timestamp(),
        progress = case when p_status = 'complete' then 100 else progress end
    where id = v.id;
    update fullpass.passes set waiting_since = null, waiting_for = null where job_id = v.id;
    perform fullpass.note_event(v, p_event, null,
        coalesce(p_data, '{}') || jsonb_strip_nulls(jsonb_build_object('error', p_error)));
    if p_status = 'cancelled' then
        perform fullpass.show_profile(
            v.user_id,
            case when exists (select from public.user_profiles
                              where user_id = v.user_id and memory_md is not null)
                 then 'complete' else 'pending' end,
            p_error => '', p_stage => 'cancelled');
    elsif p_status = 'failed' then
        perform fullpass.show_profile(v.user_id, 'failed', p_error => p_error, p_stage => 'failed');
    else
        perform fullpass.show_profile(v.user_id, 'complete', 100, 'complete', '');
    end if;
end
$$;

-- Gives one due job to a worker, or nothing; with p_only, that very job if it is pending, due or
-- not. Sweeps first, so recovery needs no leader. Two workers that take two jobs of one user at the same instant meet the unique index: the later one
-- looks again.
create or replace function fullpass.claim(
    p_worker text, p_lease_seconds float8, p_version text,
    p_rollout_percent int default 100, p_daily_limit int default null, p_only uuid default null
) returns setof public.processing_jobs language plpgsql as $$
declare
    v public.processing_jobs;
    v_tomorrow timestamptz := date_trunc('day', now() at time zone 'utc') at time zone 'utc'
                              + interval '1 day';
begin
    perform fullpass.sweep();
    for i in 1..50 loop
        begin
            with due as (
                select c.id from public.processing_jobs c
                where c.status = 'pending'
                  and case when p_only is null then c.run_at <= clock_timestamp()
                           else c.id = p_only end
                  and (p_rollout_percent >= 100
                       or abs(hashtext(c.user_id::text)::bigint) % 100 < p_rollout_percent)
                  and not exists (select from public.processing_jobs r
                                  where r.user_id = c.user_id and r.status = 'processing')
                order by c.priority desc, c.run_at
                limit 1 for update skip locked
            )
            update public.processing_jobs j set
                status = 'processing', lease_epoch = coalesce(lease_epoch, 0) + 1,
                lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
                worker_id = p_worker, pipeline_version = p_version,
                progress = case when started_at is null then 0 else coalesce(progress, 0) end,
                started_at = coalesce(started_at, clock_timestamp()),
                attempts = coalesce(attempts, 0) + 1, completed_at = null
            from due where j.id = due.id
            returning j.* into v;
        exception when unique_violation then
            continue;
        end;
        if v.id is null then
            return;
        end if;
        -- A user's jobs beyond the day's allowance wait until tomorrow; no attempt is used.
        if p_daily_limit is not null and (
            select count(*) from public.processing_jobs d
            where d.user_id = v.user_id and d.id <> v.id
              and d.started_at >= v_tomorrow - interval '1 day') >= p_daily_limit
        then
            update public.processing_jobs set
                status = 'pending', run_at = v_tomorrow, attempts = v.attempts - 1,
                lease_epoch = lease_epoch + 1, lease_expires_at = null, worker_id = null,
                started_at = case when v.attempts = 1 then null else started_at end,
                current_step = format('waiting: %s jobs a day are allowed', p_daily_limit)
            where id = v.id;
            perform fullpass.note_event(v, 'waited',
                p_data => jsonb_build_object('for', 'daily limit', 'until', v_tomorrow));
            v := null;
            continue;
        end if;
        insert into fullpass.passes (job_id, user_id, claimed_at)
        values (v.id, v.user_id, clock_timestamp())
        on conflict (job_id) do update set claimed_at = excluded.claimed_at;
        perform fullpass.note_event(v, 'claimed');
        perform fullpass.show_profile(v.user_id, 'processing', v.progress, 'starting', '');
        update public.user_profiles set full_pass_started_at = v.started_at
        where user_id = v.user_id and full_pass_started_at is distinct from v.started_at;
        return next v;
        return;
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
        waiting_for)
    select p_worker, v.* from jsonb_to_record(p_vitals) as v (
        version text, rss_bytes bigint, memory_limit_bytes bigint, loop_lag_ms real,
        llm_in_flight int, llm_limit int, waiting_for text)
    on conflict (worker_id) do update set
        last_beat_at = clock_timestamp(), rss_bytes = excluded.rss_bytes,
        memory_limit_bytes = excluded.memory_limit_bytes, loop_lag_ms = excluded.loop_lag_ms,
        llm_in_flight = excluded.llm_in_flight, llm_limit = excluded.llm_limit,
        waiting_for = excluded.waiting_for;
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

-- The pass is done. p_cost goes to the profile as jsonb or text, whichever the app's column is.
create or replace function fullpass.complete(
    p_job uuid, p_epoch bigint, p_result jsonb, p_cost jsonb
) returns void language plpgsql as $$
declare
    v public.processing_jobs := fullpass.grip(p_job, p_epoch);
begin
    update public.processing_jobs set result = p_result, current_step = 'complete'
    where id = p_job;
    v.crashes := 0;
    perform fullpass.end_job(v, 'complete', 'completed', null);
    execute format(
        'update public.user_profiles set import_cost_json = $1::%s where user_id = $2',
        (select format_type(atttypid, atttypmod) from pg_attribute
         where attrelid = 'public.user_profiles'::regclass and attname = 'import_cost_json'))
    using p_cost, v.user_id;
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
    if p_result is not null then
        update public.processing_jobs set result = p_result where id = p_job;
    end if;
    if p_retry and v.attempts < coalesce(v.max_attempts, 5) then
        update public.processing_jobs set
            status = 'pending', lease_epoch = lease_epoch + 1, lease_expires_at = null,
            worker_id = null, run_at = fullpass.due_at(v, v_delay), error_message = p_error
        where id = p_job;
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
    if v_waits and v_pass.last_progress_at > v_pass.waiting_since then
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
        waiting_for = case when v_waits then p_reason end
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
    -- What failed gets a new chance: useless receipts are not consulted, failed chunks are unread.
    update fullpass.llm_calls set call_key = null where job_id = p_job_id and not usable;
    delete from fullpass.chunk_outcomes where job_id = p_job_id and outcome = 'failed';
    perform fullpass.note_event(v, 'retry_requested');
    perform fullpass.show_profile(v.user_id, 'pending', p_stage => 'queued', p_error => '');
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
    insert into fullpass.erasures (user_id) values (p_user_id)
    on conflict (user_id) do update set erased_at = clock_timestamp();
    delete from fullpass.staged_chunks
    where job_id in (select id from public.processing_jobs where user_id = p_user_id);
    delete from public.conversation_chunks where user_id = p_user_id;
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('conversation_chunks', v_count);
    foreach v_table in array array['facts', 'extracted_facts', 'chunk_outcomes', 'windows',
                                   'conversations', 'memories'] loop
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

-- Wakes the workers, once a statement, never on progress.
create or replace function fullpass.wake() returns trigger language plpgsql as $$
begin
    perform pg_notify('fullpass_jobs', '');
    return null;
end
$$;
create or replace trigger processing_jobs_wake after insert on public.processing_jobs
    for each statement execute function fullpass.wake();

-- The same for RPC clients, who see schema public only: for the service role.
create or replace function public.fullpass_enqueue(
    user_id uuid, storage_path text, priority smallint default 0,
    run_at timestamptz default now(), file_type text default null
) returns uuid language sql as $$
    select fullpass.enqueue(user_id, storage_path, priority, run_at, file_type)
$$;
create or replace function public.fullpass_cancel(job_id uuid) returns boolean
    language sql as $$ select fullpass.cancel(job_id) $$;
create or replace function public.fullpass_retry(job_id uuid) returns boolean
    language sql as $$ select fullpass.retry(job_id) $$;
create or replace function public.fullpass_forget(user_id uuid) returns jsonb
    language sql as $$ select fullpass.forget(user_id) $$;
revoke execute on function
    public.fullpass_enqueue(uuid, text, smallint, timestamptz, text),
    public.fullpass_cancel(uuid), public.fullpass_retry(uuid), public.fullpass_forget(uuid)
    from public;
do $$
begin
    if exists (select from pg_roles where rolname = 'service_role') then
        grant execute on function
            public.fullpass_enqueue(uuid, text, smallint, timestamptz, text),
            public.fullpass_cancel(uuid), public.fullpass_retry(uuid), public.fullpass_forget(uuid)
            to service_role;
    end if;
end
$$;
