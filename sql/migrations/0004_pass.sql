-- What the full pass writes through the fence: progress, chunks, receipts.

-- Progress of a pass, as the app sees it. Percent only grows. Call it under fullpass.hold().
-- p_advanced says that something was saved which no later attempt need do again. That, or a receipt,
-- is what tells a job that goes on from one that only starts over: entering a step is not.
-- p_seconds_left is how long the pass will still take, as far as can be said (null: it cannot).
alter table fullpass.passes
    add column if not exists expected_end timestamptz;  -- where the work stands, by its own estimate
drop function if exists fullpass.progress(uuid, text, int, text, int, int, boolean);
create or replace function fullpass.progress(
    p_job uuid, p_step text, p_percent int, p_stage text,
    p_conversations int default null, p_messages int default null,
    p_advanced boolean default false, p_seconds_left float8 default null
) returns void language plpgsql as $$
declare
    v_user uuid;
    v_percent int;
begin
    update public.processing_jobs set
        current_step = p_step,
        progress = greatest(coalesce(progress, 0), least(p_percent, 99)),
        conversation_count = coalesce(p_conversations, conversation_count),
        message_count = coalesce(p_messages, message_count)
    where id = p_job returning user_id, progress into v_user, v_percent;
    update fullpass.passes set
        last_progress_at = clock_timestamp(),
        expected_end = clock_timestamp() + make_interval(secs => p_seconds_left),
        advanced_at = case when p_advanced then clock_timestamp() else advanced_at end
    where job_id = p_job;
    perform fullpass.show_profile(v_user, 'processing', v_percent, p_stage);
end
$$;

-- Says anew how long the pass will take, while its step goes on; it is no sign of progress.
create or replace function fullpass.tell_time_left(
    p_job uuid, p_stage text, p_seconds_left float8
) returns void language plpgsql as $$
begin
    update fullpass.passes set expected_end = clock_timestamp() + make_interval(secs => p_seconds_left)
    where job_id = p_job;
    perform fullpass.show_profile(
        (select user_id from public.processing_jobs where id = p_job), 'processing', p_stage => p_stage);
end
$$;

-- Brings the chunks of a batch of whole conversations into conversation_chunks, in the caller's one
-- transaction (promise 10): rows whose very text is stored keep their id and everything stored beside
-- them; changed and vanished chunks of these conversations go; what is new comes, with its map of
-- messages. The arrays are the columns of the rows, p_messages JSON of each chunk's map.
create or replace function fullpass.save_chunks(
    p_user uuid, p_source text, p_version int,
    p_conversations text[], p_tiers text[], p_indexes int[], p_totals int[], p_titles text[],
    p_contents text[], p_message_counts int[], p_created_at timestamptz[], p_recent boolean[],
    p_token_counts int[], p_hashes text[], p_messages text[]
) returns void language plpgsql
-- A plan made while a person has no chunks yet, and kept, looks at all of them in each later batch.
set plan_cache_mode = force_custom_plan as $$
declare
    v_tier_type text := (
        select format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = 'public.conversation_chunks'::regclass and attname = 'chunk_tier');
    v_conversations text[] := array(select distinct unnest(p_conversations));
    v_ids uuid[] := array(select gen_random_uuid() from generate_subscripts(p_conversations, 1));
    v_new boolean[] := array(select true from generate_subscripts(p_conversations, 1));
begin
    if exists (select from public.conversation_chunks
               where user_id = p_user and conversation_id = any (v_conversations)) then
        with stored as materialized (  -- of rows that somebody copied, one stays
            select distinct on (conversation_id, chunk_tier::text, content_hash)
                   id, conversation_id, chunk_tier::text as tier, content_hash
            from public.conversation_chunks
            where user_id = p_user and conversation_id = any (v_conversations)
              and source = p_source and chunking_version = p_version
            order by conversation_id, chunk_tier::text, content_hash, id
        )
        select array_agg(coalesce(s.id, n.id) order by n.place),
               array_agg(s.id is null order by n.place)
        into v_ids, v_new
        from unnest(v_ids, p_conversations, p_tiers, p_hashes) with ordinality
            as n (id, conversation_id, tier, content_hash, place)
        left join stored s using (conversation_id, tier, content_hash);

        delete from public.conversation_chunks
        where user_id = p_user and conversation_id = any (v_conversations)
          and (source = p_source or source is null)
          and id not in (select unnest(v_ids));

        update public.conversation_chunks c set
            chunk_index = n.chunk_index, total_chunks = n.total_chunks, title = n.title,
            is_recent = n.is_recent, created_at = n.created_at, token_count = n.token_count
        from unnest(v_ids, v_new, p_indexes, p_totals, p_titles, p_recent, p_created_at,
                    p_token_counts)
            as n (id, is_new, chunk_index, total_chunks, title, is_recent, created_at, token_count)
        where c.id = n.id and not n.is_new
          and (c.chunk_index, c.total_chunks, c.title, c.is_recent, c.created_at, c.token_count)
              is distinct from
              (n.chunk_index, n.total_chunks, n.title, n.is_recent, n.created_at, n.token_count);
    end if;

    execute format($sql$
        insert into public.conversation_chunks (
            id, user_id, source, conversation_id, title, content, message_count, created_at,
            is_recent, chunk_tier, chunk_index, total_chunks, token_count, chunking_version,
            content_hash)
        select n.id, $1, $2, n.conversation_id, n.title, n.content, n.message_count, n.created_at,
               n.is_recent, n.tier::%s, n.chunk_index, n.total_chunks, n.token_count, $3,
               n.content_hash
        from unnest($4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
            as n (id, is_new, conversation_id, tier, chunk_index, total_chunks, title, content,
                  message_count, created_at, is_recent, token_count, content_hash)
        where n.is_new
    $sql$, v_tier_type)
    using p_user, p_source, p_version, v_ids, v_new, p_conversations, p_tiers, p_indexes,
          p_totals, p_titles, p_contents, p_message_counts, p_created_at, p_recent,
          p_token_counts, p_hashes;

    insert into fullpass.chunk_maps (chunk_id, messages)
    select n.id, n.messages::json from unnest(v_ids, p_messages) as n (id, messages)
    on conflict (chunk_id) do nothing;
end
$$;

-- A conversation too large for one batch is staged and matched in slices; one transaction of many
-- short statements switches it in.

-- The id under which a staged row will be, or is already, stored.
alter table fullpass.staged_chunks add column if not exists id uuid not null default gen_random_uuid();
create index if not exists staged_chunks_by_index on fullpass.staged_chunks (job_id, chunk_index);
drop index if exists fullpass.staged_chunks_by_job;
drop function if exists fullpass.apply_staged(uuid, uuid, text, int);

-- Gives staged rows whose very text is stored already the id of that row, which so stays.
create or replace function fullpass.match_staged(
    p_job uuid, p_user uuid, p_source text, p_version int, p_conversations text[]
) returns void language sql as $$
    update fullpass.staged_chunks n set id = c.id
    from public.conversation_chunks c
    where n.job_id = p_job and n.conversation_id = any (p_conversations)
      and c.user_id = p_user and c.conversation_id = n.conversation_id
      and c.conversation_id = any (p_conversations) and c.source = p_source
      and c.chunking_version = p_version and c.chunk_tier::text = n.tier
      and c.content_hash = n.content_hash and n.id <> c.id
$$;

-- Begins the switch of a job's staged conversations (promise 10): rows whose content did not change
-- keep their id and everything stored beside them; changed and vanished chunks of these
-- conversations go. Refuses where staged rows were lost, which a crash of the server does to an
-- unlogged table. In the same transaction insert_staged() then brings what is new.
create or replace function fullpass.switch_staged(
    p_job uuid, p_user uuid, p_source text, p_expected int
) returns void language plpgsql as $$
declare
    v_conversations text[];
    v_count int;
begin
    select array_agg(distinct conversation_id), count(*) into v_conversations, v_count
    from fullpass.staged_chunks where job_id = p_job;
    if v_count <> p_expected then
        raise exception 'of % staged chunks % are left', p_expected, v_count
            using errcode = 'crash_shutdown';
    end if;

    delete from public.conversation_chunks c
    where c.user_id = p_user and c.conversation_id = any (v_conversations)
      and (c.source = p_source or c.source is null)
      and not exists (select from fullpass.staged_chunks n where n.job_id = p_job and n.id = c.id);

    update public.conversation_chunks c set
        chunk_index = n.chunk_index, total_chunks = n.total_chunks, title = n.title,
        is_recent = n.is_recent, created_at = n.created_at, token_count = n.token_count
    from fullpass.staged_chunks n
    where n.job_id = p_job and c.id = n.id
      and (c.chunk_index, c.total_chunks, c.title, c.is_recent, c.created_at, c.token_count)
          is distinct from
          (n.chunk_index, n.total_chunks, n.title, n.is_recent, n.created_at, n.token_count);
end
$$;
drop function if exists fullpass.switch_staged(uuid, uuid, text, int, int);

-- Moves the job's staged chunks with an index in [p_from, p_to) to where they belong: those that are
-- not stored yet, and their maps.
create or replace function fullpass.insert_staged(
    p_job uuid, p_user uuid, p_source text, p_version int, p_from int, p_to int
) returns void language plpgsql as $$
declare
    v_tier_type text := (
        select format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = 'public.conversation_chunks'::regclass and attname = 'chunk_tier');
begin
    execute format($sql$
        with n as (
            delete from fullpass.staged_chunks
            where job_id = $1 and chunk_index >= $5 and chunk_index < $6
            returning *
        ), stored as (
            insert into public.conversation_chunks (
                id, user_id, source, conversation_id, title, content, message_count, created_at,
                is_recent, chunk_tier, chunk_index, total_chunks, token_count, chunking_version,
                content_hash)
            select n.id, $2, $3, n.conversation_id, n.title, n.content, n.message_count,
                   n.created_at, n.is_recent, n.tier::%s, n.chunk_index, n.total_chunks,
                   n.token_count, $4, n.content_hash
            from n
            where not exists (select from public.conversation_chunks c where c.id = n.id)
        )
        insert into fullpass.chunk_maps (chunk_id, messages)
        select n.id, n.messages from n
        on conflict (chunk_id) do nothing
    $sql$, v_tier_type)
    using p_job, p_user, p_source, p_version, p_from, p_to;
end
$$;
drop function if exists fullpass.map_staged(uuid, int);

-- What a whole, undamaged export of a source no longer holds goes, with all that rests on it.
-- Only conversations that some pass met are considered; other sources are not touched.
create or replace function fullpass.remove_vanished(p_job uuid, p_user uuid, p_source text)
returns int language plpgsql as $$
declare
    v_gone text[];
begin
    select array_agg(conversation_id) into v_gone from fullpass.conversations
    where user_id = p_user and source = p_source and last_job <> p_job;
    if v_gone is null then
        return 0;
    end if;
    delete from public.conversation_chunks
    where user_id = p_user and source = p_source and conversation_id = any (v_gone);
    delete from fullpass.conversations
    where user_id = p_user and source = p_source and conversation_id = any (v_gone);
    return cardinality(v_gone);
end
$$;

-- Forgets what was extracted from text that no chunk of the person holds any more.
create or replace function fullpass.drop_orphans(p_user uuid, p_source text)
returns int language plpgsql as $$
declare
    v_count int;
begin
    delete from fullpass.extracted_facts e
    where e.user_id = p_user and e.source = p_source and not exists (
        select from public.conversation_chunks c
        where c.user_id = p_user and c.conversation_id = e.conversation_id
          and c.source = p_source and c.content_hash = e.content_hash);
    get diagnostics v_count = row_count;
    delete from fullpass.chunk_outcomes o
    where o.user_id = p_user and o.source = p_source and not exists (
        select from public.conversation_chunks c
        where c.user_id = p_user and c.source = p_source and c.content_hash = o.content_hash);
    return v_count;
end
$$;

-- What a window's request was estimated at and what was billed for it, in tokens: by these the next
-- windows are sized (fullpass.token_ratio).
alter table fullpass.windows
    add column if not exists model text,
    add column if not exists estimated_tokens int,
    add column if not exists billed_tokens int;
create index if not exists windows_billed
    on fullpass.windows (model, id) where billed_tokens is not null;

-- How many tokens a model counts for each one estimated: by the person's own latest windows, for
-- languages differ, else by everybody's; 1 while too few are known.
create or replace function fullpass.token_ratio(p_user uuid, p_model text)
returns double precision language sql stable as $$
    select coalesce((
        select sum(billed_tokens)::double precision / sum(estimated_tokens)
        from (
            select user_id, billed_tokens, estimated_tokens from fullpass.windows
            where model = p_model and billed_tokens is not null order by id desc limit 1000
        ) as latest
        group by user_id = p_user having count(*) >= 10
        order by user_id = p_user desc limit 1), 1)
$$;

-- Puts receipts in the ledger, and tells of each key asked about (with the job that asks) what is
-- known of it: both in one statement, since most of what either costs is the way there and back.
-- A receipt that is sent again, since the answer to the first time was lost, changes nothing.
-- Lookups see the receipts that came along. Not fenced: what was paid was paid (promise 2), and that
-- a receipt served a job in place of a call is said of the ledger and changes nothing of the job.
--
-- A call that began (age_ms ago) before its person was erased leaves its cost and nothing else
-- (promise 3). Only usable receipts are served again; a useless one is told of to the job that paid
-- for it. What a job's own batch brought is its first use and no saving. Null: nothing is known.
create or replace function fullpass.tend_ledger(p_receipts jsonb, p_lookups jsonb)
returns jsonb language plpgsql as $$
declare
    v_found jsonb;
begin
    if p_receipts is not null then
        insert into fullpass.llm_calls (
            call_key, user_id, job_id, purpose, provider, model, prompt_version, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, cost_usd, stop_reason, usable,
            response, request_id, latency_ms, batch, saved_by_cache_usd, saved_by_batch_usd,
            receipt)
        select case when e.erased then null else r.call_key end, r.user_id, r.job_id, r.purpose,
               r.provider, r.model, r.prompt_version, r.input_tokens, r.output_tokens,
               r.cache_read_tokens, r.cache_write_tokens, r.cost_usd, r.stop_reason,
               r.usable and not e.erased, case when e.erased then null else r.response end,
               case when e.erased then null else r.request_id end, r.latency_ms, r.batch,
               r.saved_by_cache_usd, r.saved_by_batch_usd, r.receipt
        from jsonb_to_recordset(p_receipts) as r (
            call_key text, user_id uuid, job_id uuid, purpose text, provider text, model text,
            prompt_version text, input_tokens int, output_tokens int, cache_read_tokens int,
            cache_write_tokens int, cost_usd numeric, stop_reason text, usable boolean,
            response text, request_id text, latency_ms int, age_ms int, batch boolean,
            saved_by_cache_usd numeric, saved_by_batch_usd numeric, receipt uuid)
        cross join lateral (select exists (
            select from fullpass.erasures x
            where x.user_id = r.user_id
              and x.erased_at > clock_timestamp() - make_interval(secs => r.age_ms / 1000.0)
        ) as erased) as e
        on conflict (receipt) where receipt is not null do nothing;
    end if;
    if p_lookups is not null then
        with found as materialized (
            select a.key, a.job_id as asked_by, c.*
            from (select distinct l.key, l.job_id
                  from jsonb_to_recordset(p_lookups) as l (key text, job_id uuid)) as a
            cross join lateral (
                select u.id, u.usable, u.user_id, u.job_id, u.response, u.stop_reason, u.model,
                       u.request_id, u.input_tokens, u.output_tokens, u.cache_read_tokens,
                       u.cache_write_tokens, u.batch
                from fullpass.llm_calls u
                where u.call_key = a.key and u.usable and u.response is not null
                union all
                select n.id, n.usable, n.user_id, n.job_id, null, n.stop_reason, n.model,
                       n.request_id, null, null, null, null, n.batch
                from fullpass.llm_calls n
                where n.call_key = a.key and not n.usable and n.job_id = a.job_id
                order by 2 desc
                limit 1) as c
        ), served as (
            insert into fullpass.calls_served (user_id, job_id, call_id)
            select f.user_id, f.asked_by, f.id from found f
            where f.usable and not (f.batch and f.job_id is not distinct from f.asked_by)
            order by f.asked_by, f.id
            on conflict do nothing
        )
        select jsonb_agg(jsonb_build_object(
            'key', f.key, 'job_id', f.asked_by, 'usable', f.usable, 'response', f.response,
            'stop_reason', f.stop_reason, 'model', f.model, 'request_id', f.request_id,
            'input_tokens', f.input_tokens, 'output_tokens', f.output_tokens,
            'cache_read_tokens', f.cache_read_tokens, 'cache_write_tokens', f.cache_write_tokens,
            'batch', f.batch))
        into v_found from found f;
    end if;
    return v_found;
end
$$;
