-- Who may do what: two roles with the least rights, for whoever connects to be a member of.
--
--   fullpass_reader   reads the ops views and nothing else
--   fullpass_worker   exactly what a worker needs; it cannot erase a person or a receipt, drop
--                     anything, or see the app's own columns
--
-- Neither may log in by itself: `alter role … with login password '…'`, or make a login a member.
-- Where this migration may not create roles it says so and goes on; docs/security.md has the SQL.

do $$
declare
    v_role text;
begin
    foreach v_role in array array['fullpass_reader', 'fullpass_worker'] loop
        continue when exists (select from pg_roles where rolname = v_role);
        begin
            execute format('create role %I nologin', v_role);
        exception
            when insufficient_privilege then
                raise notice 'role % is not created: this login may not create roles', v_role;
            when duplicate_object or unique_violation then null;  -- made meanwhile
        end;
    end loop;
end
$$;

-- Gives both roles their rights on all that is there, and takes everybody else's. A migration that
-- makes a table, a function or a view in schema fullpass ends with `select fullpass.secure();`.
create or replace function fullpass.secure() returns void language plpgsql as $$
declare
    v record;
    v_worker boolean := exists (select from pg_roles where rolname = 'fullpass_worker');
    v_reader boolean := exists (select from pg_roles where rolname = 'fullpass_reader');
    v_ours text[] := array[
        'id', 'user_id', 'conversation_id', 'title', 'content', 'message_count', 'created_at',
        'is_recent', 'chunk_tier', 'chunk_index', 'total_chunks', 'token_count',
        'chunking_version', 'content_hash', 'source'];
    v_rewritten text[] := array[
        'title', 'created_at', 'is_recent', 'chunk_index', 'total_chunks', 'token_count'];
    v_profile text[] := array[
        'soul_md', 'identity_md', 'user_md', 'agents_md', 'tools_md', 'soulprint_text',
        'memory_md', 'full_pass_status', 'full_pass_started_at', 'full_pass_completed_at',
        'full_pass_error', 'progress_percent', 'import_stage', 'import_cost_json'];
    v_job text[] := array[
        'status', 'conversation_count', 'message_count', 'current_step', 'progress',
        'error_message', 'attempts', 'completed_at', 'run_at', 'crashes', 'started_at',
        'lease_epoch', 'lease_expires_at', 'worker_id', 'cancel_requested_at',
        'pipeline_version', 'result'];
begin
    revoke all on all tables in schema fullpass from public;
    revoke execute on all functions in schema fullpass from public;
    if v_reader then
        grant usage on schema fullpass to fullpass_reader;
        for v in select c.relname from pg_class c
                 where c.relnamespace = 'fullpass'::regnamespace and c.relkind = 'v'
                   and c.relname like 'ops\_%' loop
            execute format('grant select on fullpass.%I to fullpass_reader', v.relname);
        end loop;
    end if;
    if not v_worker then
        return;
    end if;

    grant usage on schema fullpass to fullpass_worker;
    grant select, insert, update, delete on all tables in schema fullpass to fullpass_worker;
    -- What only ever grows, or is not a worker's to write.
    revoke insert, update, delete on fullpass.schema_migrations, fullpass.erasures
        from fullpass_worker;
    revoke update on fullpass.job_events from fullpass_worker;
    revoke delete on fullpass.memories from fullpass_worker;
    revoke delete on fullpass.llm_calls, fullpass.job_costs, fullpass.hourly_costs
        from fullpass_worker;
    -- Of a receipt only what pruning takes away, never what was paid.
    revoke update on fullpass.llm_calls from fullpass_worker;
    grant update (call_key, response, request_id) on fullpass.llm_calls to fullpass_worker;
    -- Functions run with their caller's rights and add none; these are for others to call.
    grant execute on all functions in schema fullpass to fullpass_worker;
    for v in select p.oid::regprocedure as signature from pg_proc p
             where p.pronamespace = 'fullpass'::regnamespace
               and p.proname in ('enqueue', 'cancel', 'forget', 'secure', 'backfill') loop
        execute format('revoke execute on function %s from fullpass_worker', v.signature);
    end loop;

    -- Of the app's tables the worker sees and writes its own columns only; of jobs it reads all.
    begin
        grant usage on schema public to fullpass_worker;
        grant select on public.processing_jobs to fullpass_worker;
        execute format('grant update (%s) on public.processing_jobs to fullpass_worker',
                       array_to_string(v_job, ', '));
        execute format(
            'grant select (user_id, %1$s), insert (user_id, %1$s), update (%1$s) '
            'on public.user_profiles to fullpass_worker', array_to_string(v_profile, ', '));
        execute format(
            'grant delete, select (%1$s), insert (%1$s), update (%2$s) '
            'on public.conversation_chunks to fullpass_worker',
            array_to_string(v_ours, ', '), array_to_string(v_rewritten, ', '));
    exception when insufficient_privilege then
        raise notice 'fullpass_worker gets no rights on the app''s tables: run fullpass migrate '
                     'as their owner';
    end;

    -- Row-level security. In schema fullpass, beside Supabase's: the worker sees all, nobody else
    -- anything, should the schema ever be exposed. Of the app's tables only those that migration
    -- 0001 made, which have its policy; others keep theirs, and fullpass doctor reports them.
    for v in
        select c.oid::regclass as tab, c.relrowsecurity as is_on
        from pg_class c
        where c.relkind = 'r' and c.relnamespace = 'fullpass'::regnamespace
          and c.relpersistence = 'p'  -- into the staging tables goes COPY, which refuses it
          and (c.relrowsecurity or to_regnamespace('auth') is not null)
        union all
        select p.polrelid::regclass, true from pg_policy p
        where p.polname in ('processing_jobs_own', 'user_profiles_own', 'conversation_chunks_own')
    loop
        if not v.is_on then
            execute format('alter table %s enable row level security', v.tab);
        end if;
        if not exists (select from pg_policy
                       where polrelid = v.tab and polname = 'fullpass_worker_all') then
            execute format('create policy fullpass_worker_all on %s for all to fullpass_worker '
                           'using (true) with check (true)', v.tab);
        end if;
    end loop;
end
$$;
select fullpass.secure();
