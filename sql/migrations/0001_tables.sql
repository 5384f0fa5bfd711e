-- The tables: the app's three in schema public (made here only where they are missing, extended
-- where they exist) and everything the app need not see in schema fullpass.
--
-- Safe to run again. Rows that exist are kept as they are: a CHECK they break is added NOT VALID,
-- and a unique index they prevent is left out and named by fullpass.migration_problems().

create schema if not exists fullpass;

-- ---------------------------------------------------------------------------------------------
-- public: the app's tables
-- ---------------------------------------------------------------------------------------------

create or replace function fullpass.touch_updated_at() returns trigger
language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;

do $$
declare
    v_table text;
begin
    if to_regclass('public.processing_jobs') is null then
        create table public.processing_jobs (
            id uuid primary key default gen_random_uuid(),
            user_id uuid not null,
            status text not null default 'pending',
            storage_path text,
            conversation_count int,
            message_count int,
            current_step text,
            progress int default 0,
            error_message text,
            attempts int default 0,
            created_at timestamptz not null default now(),
            updated_at timestamptz not null default now(),
            completed_at timestamptz
        );
        if to_regclass('auth.users') is not null then
            alter table public.processing_jobs
                add foreign key (user_id) references auth.users (id) on delete cascade;
        end if;
        if to_regnamespace('auth') is not null then
            alter table public.processing_jobs enable row level security;
            create policy processing_jobs_own on public.processing_jobs
                for select using (user_id = auth.uid());
        end if;
    end if;

    if to_regclass('public.user_profiles') is null then
        create table public.user_profiles (
            id uuid primary key default gen_random_uuid(),
            user_id uuid not null unique,
            soul_md text,
            identity_md text,
            user_md text,
            agents_md text,
            tools_md text,
            soulprint_text text,
            created_at timestamptz not null default now(),
            updated_at timestamptz not null default now()
        );
        if to_regclass('auth.users') is not null then
            alter table public.user_profiles
                add foreign key (user_id) references auth.users (id) on delete cascade;
        end if;
        if to_regnamespace('auth') is not null then
            alter table public.user_profiles enable row level security;
            create policy user_profiles_own on public.user_profiles
                for select using (user_id = auth.uid());
        end if;
    end if;

    if to_regclass('public.conversation_chunks') is null then
        create table public.conversation_chunks (
            id uuid primary key default gen_random_uuid(),
            user_id uuid not null,
            conversation_id text,
            title text,
            content text not null,
            message_count int,
            created_at timestamptz not null,
            updated_at timestamptz not null default now(),
            is_recent boolean not null default false,
            chunk_tier text default 'medium'
        );
        if to_regclass('auth.users') is not null then
            alter table public.conversation_chunks
                add foreign key (user_id) references auth.users (id) on delete cascade;
        end if;
        if to_regnamespace('auth') is not null then
            alter table public.conversation_chunks enable row level security;
            create policy conversation_chunks_own on public.conversation_chunks
                for select using (user_id = auth.uid());
        end if;
    end if;

    -- A table that already keeps updated_at by a trigger of its own is left alone.
    foreach v_table in array array['processing_jobs', 'user_profiles', 'conversation_chunks'] loop
        if not exists (
            select from pg_trigger
            where tgrelid = ('public.' || v_table)::regclass and not tgisinternal
              and (tgtype & 19) = 19  -- row-level, before, update
        ) and exists (
            select from pg_attribute
            where attrelid = ('public.' || v_table)::regclass
              and attname = 'updated_at' and not attisdropped
        ) then
            execute format(
                'create trigger %I before update on public.%I '
                'for each row execute function fullpass.touch_updated_at()',
                v_table || '_touch_updated_at', v_table);
        end if;
    end loop;
end
$$;

alter table public.processing_jobs
    add column if not exists file_type text,
    add column if not exists priority smallint default 0,
    add column if not exists run_at timestamptz default now(),
    add column if not exists max_attempts int default 5,
    add column if not exists crashes int default 0,
    add column if not exists started_at timestamptz,
    add column if not exists lease_epoch bigint default 0,
    add column if not exists lease_expires_at timestamptz,
    add column if not exists worker_id text,
    add column if not exists cancel_requested_at timestamptz,
    add column if not exists pipeline_version text,
    add column if not exists result jsonb;

-- Heartbeats and progress rewrite the row often and touch no indexed column: room on the page
-- keeps those updates HOT.
alter table public.processing_jobs set (fillfactor = 70);

alter table public.user_profiles
    add column if not exists memory_md text,
    add column if not exists full_pass_status text default 'pending',
    add column if not exists full_pass_started_at timestamptz,
    add column if not exists full_pass_completed_at timestamptz,
    add column if not exists full_pass_error text,
    add column if not exists progress_percent int,
    add column if not exists import_stage text,
    add column if not exists import_cost_json jsonb;

alter table public.conversation_chunks
    add column if not exists chunk_index int,
    add column if not exists total_chunks int,
    add column if not exists token_count int,
    add column if not exists chunking_version int default 1,
    add column if not exists content_hash text,
    add column if not exists source text;

-- Each constraint that the contract asks of the app's tables, tried as hard as old rows allow.
do $$
declare
    v record;
begin
    for v in
        select * from (values
            ('processing_jobs', 'processing_jobs_status_check',
             'status in (''pending'', ''processing'', ''complete'', ''failed'', ''cancelled'')'),
            ('processing_jobs', 'processing_jobs_progress_check',
             'progress between 0 and 100'),
            ('processing_jobs', 'processing_jobs_file_type_check',
             'file_type in (''json'', ''zip'')'),
            ('user_profiles', 'full_pass_status_check',
             'full_pass_status in (''pending'', ''processing'', ''complete'', ''failed'')')
        ) as wanted (tab, name, rule)
    loop
        if not exists (
            select from pg_constraint
            where conrelid = ('public.' || v.tab)::regclass and conname = v.name
        ) then
            execute format('alter table public.%I add constraint %I check (%s) not valid',
                           v.tab, v.name, v.rule);
            begin
                execute format('alter table public.%I validate constraint %I', v.tab, v.name);
            exception when check_violation then
                raise notice 'public.%: existing rows break %; it binds new rows only', v.tab, v.name;
            end;
        end if;
    end loop;

    begin
        create unique index if not exists processing_jobs_one_pending_path
            on public.processing_jobs (user_id, storage_path) where status = 'pending';
    exception when unique_violation then
        raise notice 'public.processing_jobs holds duplicate pending rows';
    end;
    begin
        create unique index if not exists processing_jobs_one_running
            on public.processing_jobs (user_id) where status = 'processing';
    exception when unique_violation then
        raise notice 'public.processing_jobs holds several processing rows of one user';
    end;
end
$$;

create index if not exists processing_jobs_by_user
    on public.processing_jobs (user_id, started_at desc);

-- What old rows prevented, one line each: the rows, and the SQL that mends them. Empty = nothing.
create or replace function fullpass.migration_problems() returns setof text
language sql stable as $$
    select format(
        'unique index processing_jobs_one_pending_path is missing: %s pending rows share a '
        '(user_id, storage_path), e.g. ids %s. Keep one of each, e.g. '
        'UPDATE public.processing_jobs SET status = ''cancelled'' WHERE id IN (…); then run: '
        'CREATE UNIQUE INDEX processing_jobs_one_pending_path ON public.processing_jobs '
        '(user_id, storage_path) WHERE status = ''pending'';',
        sum(cardinality(ids)),
        array_to_string((array_agg(array_to_string(ids[:5], ', ') order by user_id))[:3], '; '))
    from (
        select user_id, array_agg(id order by created_at) as ids
        from public.processing_jobs
        where status = 'pending' and storage_path is not null
        group by user_id, storage_path having count(*) > 1
    ) as duplicates
    where to_regclass('public.processing_jobs_one_pending_path') is null
    having count(*) > 0
    union all
    select format(
        'unique index processing_jobs_one_running is missing: %s rows are ''processing'' for a '
        'user who has another, e.g. ids %s. Finish or cancel all but one, e.g. '
        'UPDATE public.processing_jobs SET status = ''failed'' WHERE id IN (…); then run: '
        'CREATE UNIQUE INDEX processing_jobs_one_running ON public.processing_jobs (user_id) '
        'WHERE status = ''processing'';',
        sum(cardinality(ids)),
        array_to_string((array_agg(array_to_string(ids[:5], ', ') order by user_id))[:3], '; '))
    from (
        select user_id, array_agg(id order by created_at) as ids
        from public.processing_jobs
        where status = 'processing'
        group by user_id having count(*) > 1
    ) as duplicates
    where to_regclass('public.processing_jobs_one_running') is null
    having count(*) > 0
    union all
    select format('unique index %s is missing though no row prevents it; run: %s', name, ddl)
    from (values
        ('processing_jobs_one_pending_path',
         'CREATE UNIQUE INDEX processing_jobs_one_pending_path ON public.processing_jobs '
         '(user_id, storage_path) WHERE status = ''pending'';',
         exists (select from public.processing_jobs
                 where status = 'pending' and storage_path is not null
                 group by user_id, storage_path having count(*) > 1)),
        ('processing_jobs_one_running',
         'CREATE UNIQUE INDEX processing_jobs_one_running ON public.processing_jobs '
         '(user_id) WHERE status = ''processing'';',
         exists (select from public.processing_jobs
                 where status = 'processing' group by user_id having count(*) > 1))
    ) as wanted (name, ddl, prevented)
    where to_regclass('public.' || name) is null and not prevented
$$;

-- ---------------------------------------------------------------------------------------------
-- fullpass: the pipeline's memory
-- ---------------------------------------------------------------------------------------------

-- One row a job that was ever claimed: how far its pass got, and what deaths and waits it met.
create table if not exists fullpass.passes (
    job_id uuid primary key references public.processing_jobs (id) on delete cascade,
    user_id uuid not null,
    source text,
    ingest jsonb,                     -- what the reader met (counts, damages), once read
    ingested_at timestamptz,          -- the export was read to its end and its chunks are saved
    memory_saved_at timestamptz,
    sections_saved_at timestamptz,
    claimed_at timestamptz,           -- this attempt's start
    last_progress_at timestamptz,     -- last chunk batch, window or step saved under the fence
    last_death_at timestamptz,        -- last time a worker vanished with the job
    waiting_since timestamptz,        -- first of an unbroken run of waits
    waiting_for text
);

create table if not exists fullpass.job_events (
    id bigint generated always as identity primary key,
    job_id uuid not null,
    at timestamptz not null default clock_timestamp(),
    event text not null,
    step text,
    attempt int,
    lease_epoch bigint,
    worker_id text,
    data jsonb
);
create index if not exists job_events_by_job on fullpass.job_events (job_id, id);

create table if not exists fullpass.workers (
    worker_id text primary key,
    started_at timestamptz not null default clock_timestamp(),
    last_beat_at timestamptz not null default clock_timestamp(),
    version text,
    rss_bytes bigint,
    memory_limit_bytes bigint,
    loop_lag_ms real,
    llm_in_flight int,
    llm_limit int,
    waiting_for text
) with (fillfactor = 70);

-- One row a conversation known of a person and source: recognises what did not change.
create table if not exists fullpass.conversations (
    user_id uuid not null,
    source text not null,
    conversation_id text not null,
    content_hash text not null,
    chunk_count int not null,         -- 0: to be forgotten, as the person asked
    message_count int not null,
    own_characters int not null,      -- length of the person's own words: "richness" for sampling
    dated boolean not null,
    created_at timestamptz not null,
    updated_at timestamptz,           -- the export's update_time; the greatest wins
    last_job uuid not null,           -- the pass that last met it in an export
    primary key (user_id, source, conversation_id)
);

-- Chunks of a batch of whole conversations on their way into conversation_chunks. Rows live for
-- one transaction; unlogged because nothing in it survives that transaction anyway.
create unlogged table if not exists fullpass.staged_chunks (
    job_id uuid not null,
    conversation_id text not null,
    tier text not null,
    chunk_index int not null,
    total_chunks int not null,
    title text,
    content text not null,
    message_count int not null,
    created_at timestamptz not null,
    is_recent boolean not null,
    token_count int not null,
    content_hash text not null,
    messages json not null            -- as in chunk_maps
);
create index if not exists staged_chunks_by_job on fullpass.staged_chunks (job_id);

-- Which message stands where in a chunk: one row a chunk, since it is written and read as a whole.
create table if not exists fullpass.chunk_maps (
    chunk_id uuid primary key references public.conversation_chunks (id) on delete cascade,
    messages json not null            -- [{"message_id","role","at","start","stop"}], in order;
);                                    -- characters of the chunk's content, [start, stop)
create or replace view fullpass.chunk_messages as
select p.chunk_id, m.ordinal::int, m.message_id, m.role, m.at, m.start, m.stop
from fullpass.chunk_maps p
cross join lateral rows from (
    json_to_recordset(p.messages) as
        (message_id text, role text, at timestamptz, start int, stop int)
) with ordinality as m (message_id, role, at, start, stop, ordinal);
comment on view fullpass.chunk_messages is
'Which message stands where in a chunk, a row a message. When to look: to see the words a fact rests on. What to do: join conversation_chunks on chunk_id; substr(content, start + 1, stop - start) is what was said.';

-- Extraction windows: which chunks go to the model together. Planned once, never shifted.
create table if not exists fullpass.windows (
    id bigint generated always as identity primary key,
    user_id uuid not null,
    source text not null,
    content_hashes text[] not null,
    token_count int not null,
    first_ordinal int,                -- a part of a window's only chunk: its messages
    last_ordinal int,                 -- [first_ordinal, last_ordinal]
    parent_id bigint,                 -- the window this one was split from
    state text not null default 'planned' check (state in ('planned', 'done', 'split', 'dropped')),
    created_at timestamptz not null default now()
);
create index if not exists windows_planned
    on fullpass.windows (user_id, source, id) where state = 'planned';

-- What became of each chunk, by content: a text once read is not read again.
create table if not exists fullpass.chunk_outcomes (
    user_id uuid not null,
    content_hash text not null,
    job_id uuid not null,
    chunk_id uuid not null,
    source text not null,
    extractor text not null check (extractor in ('llm', 'offline')),
    outcome text not null
        check (outcome in ('ok', 'empty', 'salvaged', 'split', 'refused', 'failed')),
    facts int not null default 0,
    rejected int not null default 0,
    detail text,
    created_at timestamptz not null default now(),
    primary key (user_id, content_hash)
);
create index if not exists chunk_outcomes_by_job on fullpass.chunk_outcomes (job_id);

-- Facts as the model reported them, each checked against the message it quotes. The unverified
-- stay here, marked, and go no further.
create table if not exists fullpass.extracted_facts (
    id bigint generated always as identity primary key,
    user_id uuid not null,
    source text not null,
    job_id uuid not null,
    content_hash text not null,
    conversation_id text not null,
    message_id text,
    origin text not null,             -- role of the message: user, instructions, memory
    category text not null,
    slot text not null default '',
    statement text not null,
    polarity text not null default 'affirmed',
    confidence text not null default 'medium',
    quote text not null,
    observed_at timestamptz,          -- when it was said
    valid_from date,
    rejected text                     -- why it was not believed; null = verified
);
create index if not exists extracted_facts_by_chunk
    on fullpass.extracted_facts (user_id, content_hash);

-- Consolidated facts: current view and history of a person, each with all its evidence.
create table if not exists fullpass.facts (
    id uuid primary key,
    user_id uuid not null,
    source text not null,
    job_id uuid not null,
    category text not null
        check (category in ('preferences', 'projects', 'dates', 'beliefs', 'decisions')),
    slot text not null default '',
    statement text not null,
    polarity text not null default 'affirmed',
    confidence text not null default 'medium',
    evidence jsonb not null,
    observed_at timestamptz,
    first_observed_at timestamptz,
    valid_from date,
    superseded_by uuid,
    created_at timestamptz not null default now()
);
create index if not exists facts_by_user on fullpass.facts (user_id, category);

-- The ledger: every paid reply, whether or not it was of use (promises 2 and 3). No foreign key to
-- jobs: what was paid stays known when a job or its user is gone.
create table if not exists fullpass.llm_calls (
    id bigint generated always as identity primary key,
    call_key text,
    user_id uuid not null,
    job_id uuid,
    purpose text not null,
    provider text not null,
    model text not null,
    prompt_version text not null,
    input_tokens int,
    output_tokens int,
    cache_read_tokens int,
    cache_write_tokens int,
    cost_usd numeric(16, 8),          -- null: the model's price is not known
    stop_reason text,
    usable boolean not null,
    response text,
    request_id text,
    latency_ms int,
    batch boolean not null default false,
    saved_by_cache_usd numeric(16, 8), -- below zero: writing the prefix cost more than it saved
    saved_by_batch_usd numeric(16, 8),
    created_at timestamptz not null default clock_timestamp(),
    receipt uuid                      -- given by the process that paid; null: came by batch
);
create index if not exists llm_calls_usable
    on fullpass.llm_calls (call_key) where usable and call_key is not null;
create index if not exists llm_calls_useless
    on fullpass.llm_calls (call_key) where not usable and call_key is not null;
-- A receipt that is sent again, since nobody heard that it was written, is written once.
create unique index if not exists llm_calls_receipt
    on fullpass.llm_calls (receipt) where receipt is not null;
create index if not exists llm_calls_by_job on fullpass.llm_calls (job_id);
create index if not exists llm_calls_by_user on fullpass.llm_calls (user_id, created_at);

-- Which receipts served a job again in place of a call: what the ledger saved. A row a job and
-- receipt, however often an interrupted job asks.
create table if not exists fullpass.calls_served (
    user_id uuid not null,
    job_id uuid not null,
    call_id bigint not null,
    served_at timestamptz not null default clock_timestamp(),
    primary key (job_id, call_id)
);

-- Every MEMORY ever saved, with what wrote it: an offline one never replaces a model's.
create table if not exists fullpass.memories (
    job_id uuid primary key,
    user_id uuid not null,
    writer text not null,             -- llm, rendering (facts listed by code), offline
    memory_md text not null,
    facts int not null,
    details jsonb not null default '{}',
    created_at timestamptz not null default clock_timestamp()
);
create index if not exists memories_by_user on fullpass.memories (user_id, created_at desc);

-- Whose data was erased, and when: a receipt that lands later keeps its cost and nothing else.
create table if not exists fullpass.erasures (
    user_id uuid primary key,
    erased_at timestamptz not null default clock_timestamp()
);
