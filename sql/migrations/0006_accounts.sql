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
