-- Keeping house: what grows old goes, a little at a time, and tables stay as small as what they hold.

-- Old rows are found by age, not by reading everything.
create index if not exists llm_calls_bodies
    on fullpass.llm_calls (created_at) where response is not null;
create index if not exists job_events_by_age on fullpass.job_events (at);
create index if not exists windows_ended
    on fullpass.windows (created_at) where state <> 'planned';

-- Drops what is older than so many days (PIPELINE_RETENTION_DAYS), at most p_limit rows of each kind
-- a call, so that it is quick and holds nobody up; returns how many of each. Two at once only share
-- the work.
--   llm_bodies   texts of replies, which are then not served again; tokens and cost stay
--   job_events   the timeline of jobs that have ended
--   windows      plans of reading that were carried out
--   workers      workers that have not beaten since and hold nothing
--   outbox       messages, told or not, but none of four days: until then one may still be told
-- Facts, MEMORY, outcomes by content hash and sums of cost stay until fullpass.forget.
create or replace function fullpass.prune(p_days int, p_limit int default 1000)
returns jsonb language plpgsql as $$
declare
    v_before timestamptz := clock_timestamp() - make_interval(days => p_days);
    v_counts jsonb := '{}';
    v_count bigint;
begin
    update fullpass.llm_calls set call_key = null, response = null, request_id = null
    where id = any (array(
        select id from fullpass.llm_calls
        where response is not null and created_at < v_before
        order by created_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('llm_bodies', v_count);

    delete from fullpass.job_events where id = any (array(
        select e.id from fullpass.job_events e
        where e.at < v_before and not exists (
            select from public.processing_jobs j
            where j.id = e.job_id and j.status in ('pending', 'processing'))
        order by e.at limit p_limit));
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('job_events', v_count);

    delete from fullpass.windows where id = any (array(
        select id from fullpass.windows
        where state <> 'planned' and created_at < v_before
        order by created_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('windows', v_count);

    delete from fullpass.workers where worker_id = any (array(
        select w.worker_id from fullpass.workers w
        where w.last_beat_at < v_before and not exists (
            select from public.processing_jobs j
            where j.worker_id = w.worker_id and j.status = 'processing')
        order by w.last_beat_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    v_counts := v_counts || jsonb_build_object('workers', v_count);

    delete from fullpass.outbox where id = any (array(
        select id from fullpass.outbox
        where at < least(v_before, clock_timestamp() - interval '4 days') order by at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    return v_counts || jsonb_build_object('outbox', v_count);
end
$$;

-- Vacuum by what each table goes through, not by a fifth of its size: at a million rows the default
-- would let 200,000 dead ones lie.
--   rewritten in place all day: vacuumed early, with room on the page for HOT updates
--   filled and emptied again:   vacuumed by count
--   only added to:              vacuumed by inserts, which keeps index-only scans and freezing cheap
alter table public.processing_jobs set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
alter table fullpass.passes set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
alter table fullpass.workers set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table fullpass.job_costs set (autovacuum_vacuum_scale_factor = 0.02);
alter table fullpass.hourly_costs set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
alter table fullpass.staged_chunks set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
alter table fullpass.staged_facts set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
alter table fullpass.windows set (autovacuum_vacuum_scale_factor = 0.05);
alter table fullpass.job_events set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
alter table fullpass.llm_calls set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

-- Queues again, at low priority, the newest export of each source of people whose chunks were cut by
-- an older algorithm. Looks at p_users people after p_after, in order of id, and queues at most
-- p_limit jobs; `after` is where to go on, null at the end. Nobody is queued twice for one version
-- (a timeline event says so): chunks that no export holds any more stay as they are.
create or replace function fullpass.backfill(
    p_version int, p_limit int, p_after uuid default null, p_users int default 500,
    p_priority smallint default -100
) returns jsonb language plpgsql as $$
declare
    v_user uuid := p_after;
    v_next uuid;
    v record;
    v_id uuid;
    v_job public.processing_jobs;
    v_queued jsonb := '[]';
    v_without bigint := 0;
begin
    for i in 1..p_users loop
        select user_id into v_next from public.conversation_chunks
        where v_user is null or user_id > v_user order by user_id limit 1;
        if not found then
            return jsonb_build_object('queued', v_queued, 'without_export', v_without,
                                      'after', null);
        end if;
        exit when jsonb_array_length(v_queued) >= p_limit;
        v_user := v_next;
        continue when not exists (
            select from public.conversation_chunks
            where user_id = v_user and coalesce(chunking_version, 0) < p_version);
        for v in
            select o.source, j.* from (
                select distinct source from public.conversation_chunks
                where user_id = v_user and coalesce(chunking_version, 0) < p_version
            ) as o
            left join lateral (
                select d.storage_path, d.file_type
                from public.processing_jobs d left join fullpass.passes s on s.job_id = d.id
                where d.user_id = v_user and d.status = 'complete'
                  and d.storage_path !~ '^file:'
                  and (o.source is null or s.source is null or s.source = o.source)
                order by (s.source is not distinct from o.source) desc, d.completed_at desc
                limit 1
            ) as j on true
            order by o.source nulls last
        loop
            if v.storage_path is null then
                v_without := v_without + 1;
                continue;
            end if;
            continue when exists (
                select from public.processing_jobs d join fullpass.job_events e on e.job_id = d.id
                where d.user_id = v_user and d.storage_path = v.storage_path
                  and e.event = 'backfilled' and (e.data ->> 'chunking_version')::int >= p_version);
            exit when jsonb_array_length(v_queued) >= p_limit;
            v_id := fullpass.enqueue(v_user, v.storage_path, p_priority,
                                     p_file_type => v.file_type);
            select * into v_job from public.processing_jobs where id = v_id;
            perform fullpass.note_event(v_job, 'backfilled',
                p_data => jsonb_build_object('chunking_version', p_version));
            v_queued := v_queued || to_jsonb(v_id);
        end loop;
    end loop;
    return jsonb_build_object('queued', v_queued, 'without_export', v_without, 'after', v_user);
end
$$;

select fullpass.secure();
