-- What the workers of one LLM account use of it, and what grows old in the ledger.

-- One row a worker, account and model, written by that worker alone every few seconds while it makes
-- calls. Nothing but the key is indexed, so that each write stays on its page.
create table if not exists fullpass.account_use (
    account text not null,            -- a fingerprint; never the key
    model text not null,
    worker_id text not null,
    at timestamptz not null default clock_timestamp(),
    wants boolean not null,           -- would use more if it might
    requests real not null,           -- a minute, of late; so are the tokens
    input_tokens real not null,
    output_tokens real not null,
    paused_until timestamptz not null,
    primary key (account, model, worker_id)
) with (fillfactor = 50);
alter table fullpass.account_use enable row level security;

-- Writes a worker's row and returns those of the others that are alive; now and then it sweeps out
-- what the dead left.
create or replace function fullpass.share_use(
    p_worker text, p_account text, p_model text, p_wants boolean, p_requests float8,
    p_input_tokens float8, p_output_tokens float8, p_pause_seconds float8, p_stale_seconds float8
) returns table (
    wants boolean, requests float8, input_tokens float8, output_tokens float8, pause_seconds float8
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    insert into fullpass.account_use as u values (
        p_account, p_model, p_worker, v_now, p_wants, p_requests, p_input_tokens, p_output_tokens,
        v_now + make_interval(secs => p_pause_seconds))
    on conflict (account, model, worker_id) do update set
        at = excluded.at, wants = excluded.wants, requests = excluded.requests,
        input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
        paused_until = excluded.paused_until;
    if random() < 0.01 then
        delete from fullpass.account_use u where ctid in (
            select o.ctid from fullpass.account_use o where o.at < v_now - interval '1 hour'
            for update skip locked limit 100);
    end if;
    return query
    select u.wants, u.requests::float8, u.input_tokens::float8, u.output_tokens::float8,
           greatest(0, extract(epoch from u.paused_until - v_now))::float8
    from fullpass.account_use u
    where u.account = p_account and u.model = p_model and u.worker_id <> p_worker
      and u.at > v_now - make_interval(secs => p_stale_seconds);
end
$$;

-- Bodies of receipts by age, for pruning.
create index if not exists llm_calls_bodies
    on fullpass.llm_calls (created_at) where response is not null;

-- Drops what is older than so many days: bodies of replies, which are then not served again, and
-- events of jobs that have ended. Costs and outcomes stay. At most p_limit rows of each a call, so
-- that it is quick and holds nobody up; returns how many were dropped.
create or replace function fullpass.prune(p_days int, p_limit int default 1000)
returns jsonb language plpgsql as $$
declare
    v_before timestamptz := clock_timestamp() - make_interval(days => p_days);
    v_bodies bigint;
    v_events bigint;
begin
    update fullpass.llm_calls set call_key = null, response = null, request_id = null
    where id in (
        select id from fullpass.llm_calls
        where response is not null and created_at < v_before
        order by created_at limit p_limit for update skip locked);
    get diagnostics v_bodies = row_count;
    delete from fullpass.job_events where id in (
        select e.id from fullpass.job_events e
        where e.at < v_before and not exists (
            select from public.processing_jobs j
            where j.id = e.job_id and j.status in ('pending', 'processing'))
        order by e.id limit p_limit for update of e skip locked);
    get diagnostics v_events = row_count;
    return jsonb_build_object('llm_bodies', v_bodies, 'job_events', v_events);
end
$$;
