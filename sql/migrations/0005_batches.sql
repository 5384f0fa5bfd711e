-- Message Batches: what was sent at half price, what came of each request, and who still waits.
--
--   creating ──(the server's id is known)──▶ sent ──(every result is in the ledger)──▶ done
--      └──(listed: it never landed)──▶ done
--
-- A batch is written down before it is made and its id before it is looked at, so that a process
-- that dies in between leaves something to look for (promise 3). What a result cost goes to the
-- ledger whoever holds the job by then (promise 2).

-- How a planned window is read: null or 'now' by a call of its own; 'batch' by a batch, made or
-- about to be; 'landed' when its reply has come by batch and lies in the ledger.
-- `sent` counts the batches that it, or the window it was split from, was put into.
alter table fullpass.windows
    add column if not exists lane text check (lane in ('now', 'batch', 'landed')),
    add column if not exists sent int not null default 0;

-- No foreign key to jobs: a batch outlives the job that made it until its cost is known.
create table if not exists fullpass.batches (
    id bigint generated always as identity primary key,
    user_id uuid not null,
    job_id uuid not null,
    source text not null,
    provider text not null,
    model text not null,
    purpose text not null,
    prompt_version text not null,
    requests int not null,
    estimated_usd numeric(16, 8),     -- null: the model's price is not known
    state text not null default 'creating' check (state in ('creating', 'sent', 'done')),
    batch_id text,                    -- the server's
    created_at timestamptz not null default clock_timestamp(),
    sent_at timestamptz,
    expires_at timestamptz,           -- by this database's clock
    looked_at timestamptz,
    cancel_asked_at timestamptz,
    given_up_at timestamptz,          -- nobody waits for it any more; its cost is still noted
    ended_at timestamptz,
    outcome text                      -- of a done one: collected, never sent, or why it was left
);
create index if not exists batches_open
    on fullpass.batches (user_id) where state <> 'done';
create unique index if not exists batches_by_batch_id
    on fullpass.batches (batch_id) where batch_id is not null;

-- One row a request; the key is the ledger's and the server's custom id. 'stray': a result is of
-- use, but nobody waits for it.
create table if not exists fullpass.batch_items (
    batch bigint not null references fullpass.batches (id) on delete cascade,
    call_key text not null,
    window_id bigint,
    state text not null default 'waiting'
        check (state in ('waiting', 'stray', 'succeeded', 'errored', 'canceled', 'expired')),
    detail text,
    primary key (batch, call_key)
);
-- The same question never waits in two batches.
create unique index if not exists batch_items_waiting
    on fullpass.batch_items (call_key) where state = 'waiting';
create index if not exists batch_items_by_window on fullpass.batch_items (window_id);

-- The key under which an item is kept after its person was erased: it still tells which result was
-- noted already, and no question can be found by it.
create or replace function fullpass.blind(p_key text) returns text
language sql immutable parallel safe as $$
    select encode(sha256(convert_to(p_key, 'UTF8')), 'hex')
$$;

-- Writes the server's id to a batch. False when the row waits for no id any more: whoever took the
-- job over gave this one up, so it is put down as a second batch whose results nobody waits for.
create or replace function fullpass.batch_sent(
    p_batch bigint, p_batch_id text, p_expires_seconds float8
) returns boolean language plpgsql as $$
declare
    v fullpass.batches;
begin
    select * into v from fullpass.batches where id = p_batch for update;
    if exists (select from fullpass.batches where batch_id = p_batch_id) then
        return true;
    end if;
    if v.state = 'creating' then
        update fullpass.batches set
            state = 'sent', batch_id = p_batch_id, sent_at = clock_timestamp(),
            expires_at = clock_timestamp() + make_interval(secs => p_expires_seconds)
        where id = p_batch;
        update fullpass.windows w set sent = sent + 1
        from fullpass.batch_items i where i.batch = p_batch and w.id = i.window_id;
        return true;
    end if;
    with copy as (
        insert into fullpass.batches (
            user_id, job_id, source, provider, model, purpose, prompt_version, requests,
            estimated_usd, state, batch_id, sent_at, expires_at, given_up_at)
        values (v.user_id, v.job_id, v.source, v.provider, v.model, v.purpose, v.prompt_version,
                v.requests, v.estimated_usd, 'sent', p_batch_id, clock_timestamp(),
                clock_timestamp() + make_interval(secs => p_expires_seconds), clock_timestamp())
        returning id
    )
    insert into fullpass.batch_items (batch, call_key, window_id, state)
    select copy.id, i.call_key, i.window_id, 'stray'
    from copy, fullpass.batch_items i where i.batch = p_batch;
    return false;
end
$$;

-- Notes one result, once: its state and, when it was paid, its receipt. False when it was noted
-- before or is none of this batch. Not fenced (promise 2). A person who was erased since the batch
-- was made leaves the cost and nothing else (promise 3).
create or replace function fullpass.record_batch_item(
    p_batch bigint, p_key text, p_state text, p_detail text, p_model text, p_input int,
    p_output int, p_cache_read int, p_cache_write int, p_cost numeric, p_saved_by_cache numeric,
    p_saved_by_batch numeric, p_stop_reason text, p_usable boolean, p_response text,
    p_request_id text
) returns boolean language plpgsql as $$
begin
    update fullpass.batch_items set state = p_state, detail = p_detail
    where batch = p_batch and call_key in (p_key, fullpass.blind(p_key))
      and state in ('waiting', 'stray');
    if not found then
        return false;
    end if;
    if p_state = 'succeeded' then
        insert into fullpass.llm_calls (
            call_key, user_id, job_id, purpose, provider, model, prompt_version, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, cost_usd, saved_by_cache_usd,
            saved_by_batch_usd, stop_reason, usable, response, request_id, batch)
        select case when e.erased then null else p_key end, b.user_id, b.job_id, b.purpose,
               b.provider, p_model, b.prompt_version, p_input, p_output, p_cache_read,
               p_cache_write, p_cost, p_saved_by_cache, p_saved_by_batch, p_stop_reason,
               p_usable and not e.erased,
               case when e.erased then null else p_response end,
               case when e.erased then null else p_request_id end, true
        from fullpass.batches b
        cross join lateral (select exists (
            select from fullpass.erasures x
            where x.user_id = b.user_id and x.erased_at >= b.created_at) as erased) as e
        where b.id = p_batch;
    end if;
    return true;
end
$$;

-- Closes a batch: nothing more comes of it, and what has no result may be sent again. Items of an
-- erased person go; of others they stay until they are pruned.
create or replace function fullpass.close_batch(p_batch bigint, p_outcome text)
returns void language sql as $$
    update fullpass.batch_items set state = 'errored', detail = p_outcome
    where batch = p_batch and state in ('waiting', 'stray');
    update fullpass.batches
    set state = 'done', ended_at = clock_timestamp(), outcome = p_outcome
    where id = p_batch and state <> 'done';
    delete from fullpass.batch_items i using fullpass.batches b
    where i.batch = p_batch and b.id = p_batch
      and exists (select from fullpass.erasures x
                  where x.user_id = b.user_id and x.erased_at >= b.created_at);
$$;

-- Erases what batches hold of a person; what is under way is cancelled by the next worker that
-- looks, and then leaves its cost. Called by fullpass.forget.
create or replace function fullpass.forget_batches(p_user uuid) returns int
language plpgsql as $$
declare
    v_count int;
begin
    update fullpass.batch_items i
    set call_key = fullpass.blind(i.call_key), window_id = null, state = 'stray', detail = null
    from fullpass.batches b
    where b.user_id = p_user and i.batch = b.id and b.state <> 'done'
      and i.state in ('waiting', 'stray');
    get diagnostics v_count = row_count;
    delete from fullpass.batch_items i using fullpass.batches b
    where b.user_id = p_user and i.batch = b.id and i.state <> 'stray';
    update fullpass.batches set given_up_at = coalesce(given_up_at, clock_timestamp())
    where user_id = p_user and state <> 'done';
    return v_count;
end
$$;

-- Takes up to p_limit batches that no job waits for (cancelled, failed, erased, given up) and that
-- nobody looked at for p_seconds, old ones for longer: any worker may, no leader is needed. Prunes
-- old rows by the way.
create or replace function fullpass.take_orphan_batches(
    p_limit int, p_seconds float8, p_keep_days int
) returns setof fullpass.batches language plpgsql as $$
begin
    delete from fullpass.batches where id in (
        select id from fullpass.batches
        where state = 'done' and ended_at < clock_timestamp() - make_interval(days => p_keep_days)
        order by ended_at limit 20 for update skip locked);
    return query
    update fullpass.batches b set looked_at = clock_timestamp()
    where b.id in (
        select o.id from fullpass.batches o
        where o.state <> 'done'
          and coalesce(o.looked_at, '-infinity')
              < clock_timestamp() - greatest(
                  make_interval(secs => p_seconds), (clock_timestamp() - o.created_at) / 50)
          and (o.given_up_at is not null or not exists (
              select from public.processing_jobs j
              left join fullpass.passes p on p.job_id = j.id
              where j.user_id = o.user_id and j.status in ('pending', 'processing')
                and coalesce(p.source, o.source) = o.source))
        order by o.looked_at nulls first limit p_limit for update skip locked)
    returning b.*;
end
$$;

-- Gives a job back until its batches are looked at again. It is no ordinary wait: a batch has an
-- end of its own (24 hours), so the longest wait does not count, and the person's profile goes on
-- saying that the pass is at work. Returns 'released' or 'cancelled'.
create or replace function fullpass.await_batches(
    p_job uuid, p_epoch bigint, p_seconds float8, p_reason text, p_stage text
) returns text language plpgsql as $$
declare
    v_outcome text;
    v_user uuid;
begin
    v_outcome := fullpass.release(p_job, p_epoch, p_seconds, p_reason, 315360000);
    if v_outcome = 'released' then
        select user_id into v_user from public.processing_jobs where id = p_job;
        perform fullpass.show_profile(v_user, 'processing', p_stage => p_stage);
        -- Another trouble that follows starts its own wait.
        update fullpass.passes set waiting_since = null where job_id = p_job;
    end if;
    return v_outcome;
end
$$;
