-- The outbox: what is to be told outside, written in the transaction of what it tells of.
--
--   an event on a job's timeline ──trigger──▶ outbox row ──take──▶ sent ──▶ ended
--                                                 ▲                │
--                                                 └── due later ◀──┘  not heard, or nobody said so
--
-- A row is put off before it is sent and ended after: a crash in between sends it again, under the
-- same id. Workers send (daemon/ops/telling.py); nothing here waits for the outside.

-- What some worker can tell of. A channel counts as live for three days after a worker last had it:
-- rows are written for live channels only, so none pile up where nobody tells.
create table if not exists fullpass.channels (
    channel text primary key,         -- alert, notify, email
    events text[] not null,           -- events of a job's timeline that it tells of
    live_until timestamptz not null,
    target text not null,             -- fingerprint of its address
    gone boolean not null default false  -- that address answered 410: told nothing until it changes
);

create table if not exists fullpass.outbox (
    id uuid primary key default gen_random_uuid(),  -- the message's id, the same at every attempt
    channel text not null,
    event text not null,
    job_id uuid,
    user_id uuid,
    about text,                       -- of alerts: alike ones have it in common
    data jsonb not null default '{}',
    at timestamptz not null default clock_timestamp(),
    due_at timestamptz not null default clock_timestamp(),
    attempts int not null default 0,
    told_at timestamptz,              -- its first attempt
    ended_at timestamptz,
    outcome text check (outcome in ('delivered', 'repeated', 'summed up', 'dropped', 'given up')),
    error text                        -- what its last attempt met
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index if not exists outbox_due
    on fullpass.outbox (channel, due_at) where ended_at is null;
create index if not exists outbox_alerts_told
    on fullpass.outbox (told_at) where channel = 'alert' and told_at is not null;
create index if not exists outbox_stops on fullpass.outbox (at) where about = 'work';
create index if not exists outbox_by_age on fullpass.outbox (at);
create index if not exists outbox_by_user on fullpass.outbox (user_id);

-- A message for each live channel that tells of this event. The job's row is already as the event
-- leaves it.
create or replace function fullpass.tell_event() returns trigger language plpgsql as $$
begin
    insert into fullpass.outbox (channel, event, job_id, user_id, about, data, at)
    select c.channel, new.event, new.job_id, j.user_id,
           case when c.channel = 'alert' then
               new.event || ': ' || left(regexp_replace(regexp_replace(
                   coalesce(new.data ->> 'error', new.step, ''),
                   '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', '…', 'g'),
                   '[0-9]+', 'N', 'g'), 300) end,
           jsonb_strip_nulls(jsonb_build_object(
               'step', new.step, 'error', left(new.data ->> 'error', 500),
               'conversations', j.conversation_count, 'messages', j.message_count)),
           new.at
    from fullpass.channels c
    cross join public.processing_jobs j
    where j.id = new.job_id and new.event = any (c.events) and c.live_until > clock_timestamp();
    if new.event = 'completed' then
        perform fullpass.tell_resumed(p.claimed_at) from fullpass.passes p
        where p.job_id = new.job_id;
    end if;
    return null;
end
$$;
create or replace trigger job_events_tell
    after insert on fullpass.job_events for each row
    when (new.event in ('completed', 'failed', 'quarantined', 'cancelled', 'stalled'))
    execute function fullpass.tell_event();

-- An alert of something that is no job's event.
create or replace function fullpass.tell_alert(p_event text, p_about text, p_data jsonb)
returns void language sql as $$
    insert into fullpass.outbox (channel, event, about, data)
    select channel, p_event, p_about, p_data from fullpass.channels
    where channel = 'alert' and live_until > clock_timestamp()
$$;

-- Work goes on: a job that was claimed after the last stop went through, whichever workers they were.
create or replace function fullpass.tell_resumed(p_claimed_at timestamptz) returns void
language plpgsql as $$
declare
    v_last fullpass.outbox;
begin
    select * into v_last from fullpass.outbox where about = 'work' order by at desc limit 1;
    if v_last.event = 'stopped' and v_last.at < p_claimed_at then
        perform fullpass.tell_alert('resumed', 'work', jsonb_build_object(
            'trouble', v_last.data ->> 'trouble', 'since', v_last.at));
    end if;
end
$$;

-- A stop that a worker told straight out, so many seconds ago, since the database was away. It stands
-- here as told, so that its end is told too: at once if a job that began after it is through already.
create or replace function fullpass.note_told_stop(p_data jsonb, p_seconds_ago float8) returns void
language plpgsql as $$
declare
    v_at timestamptz := clock_timestamp() - make_interval(secs => p_seconds_ago);
begin
    insert into fullpass.outbox (channel, event, about, data, at, told_at, ended_at, attempts, outcome)
    select channel, 'stopped', 'work', p_data, v_at, v_at, clock_timestamp(), 1, 'delivered'
    from fullpass.channels where channel = 'alert' and live_until > clock_timestamp();
    perform fullpass.tell_resumed(p.claimed_at)
    from public.processing_jobs j join fullpass.passes p on p.job_id = j.id
    where j.status = 'complete' and j.completed_at between v_at and clock_timestamp()
      and p.claimed_at > v_at
    limit 1;
end
$$;

-- One alert an hour of all jobs that are stuck (ops_stuck) or have waited for ten minutes.
create or replace function fullpass.tell_stuck() returns void language plpgsql as $$
begin
    if exists (select from fullpass.outbox
               where channel = 'alert' and event = 'stuck'
                 and told_at > clock_timestamp() - interval '1 hour') then
        return;
    end if;
    perform fullpass.tell_alert('stuck', 'stuck', jsonb_build_object(
        'jobs', s.jobs, 'job_id', s.job_id, 'step', s.step, 'reason', s.reason,
        'remedy', s.remedy, 'seconds', s.seconds))
    from (
        select count(*) over () as jobs, k.*
        from (
            select job_id, step, reason, remedy, seconds from fullpass.ops_stuck
            union all
            select j.id, j.current_step,
                   'it waits, with no attempt used up, for: ' || p.waiting_for,
                   'mend what it waits for; it goes on by itself',
                   extract(epoch from now() - p.waiting_since)::float8
            from fullpass.passes p
            join public.processing_jobs j on j.id = p.job_id and j.status = 'pending'
            where p.waiting_since between now() - interval '1 hour'
                                      and now() - interval '10 minutes'
              and p.waiting_for is not null and j.run_at < 'infinity'
        ) as k
        order by k.seconds desc limit 1
    ) as s;
end
$$;

-- A worker has this channel, at this address; false while the address wants nothing more.
create or replace function fullpass.keep_channel(p_channel text, p_events text[], p_target text)
returns boolean language plpgsql as $$
declare
    v_gone boolean;
begin
    insert into fullpass.channels as c (channel, events, live_until, target)
    values (p_channel, p_events, clock_timestamp() + interval '3 days', p_target)
    on conflict (channel) do update set
        events = excluded.events, target = excluded.target,
        gone = c.gone and c.target = excluded.target,
        live_until = case when c.gone and c.target = excluded.target then c.live_until
                          else excluded.live_until end
    returning gone into v_gone;
    return not v_gone;
end
$$;

-- The address answered that it is gone: nothing more is written for it, and nothing sent to it.
create or replace function fullpass.channel_gone(p_channel text, p_target text)
returns void language plpgsql as $$
begin
    update fullpass.channels set gone = true, live_until = clock_timestamp()
    where channel = p_channel and target = p_target and not gone;
    if found then
        perform fullpass.tell_alert('gone', 'gone: ' || p_channel,
                                    jsonb_build_object('channel', p_channel));
    end if;
end
$$;

-- Whether an alert is told or only counted. The caller holds the channel's row, so that one worker
-- decides at a time:
--   * the same alert once an hour; a stop is told again when work had gone on in between, and that
--     the database answers again after each outage
--   * at most p_per_hour an hour; those beyond are summed up in one, an hour after the first of them.
--     Never summed up: that all work stops or goes on, and that the database answers again. Where
--     that comes and goes more often than p_per_hour, its newest word waits for its turn
create or replace function fullpass.worth_telling(v fullpass.outbox, p_per_hour int default 20)
returns boolean language plpgsql as $$
declare
    v_hour_ago timestamptz := clock_timestamp() - interval '1 hour';
    v_told int;
    v_turn timestamptz;
begin
    if v.event = 'more' then
        return true;
    end if;
    if v.about in ('work', 'database') and v.due_at > v.at + interval '1 minute'
       and exists (select from fullpass.outbox n where n.about = v.about and n.at > v.at) then
        -- It waited for its turn, and is out of date.
        update fullpass.outbox set ended_at = clock_timestamp(), outcome = 'repeated'
        where id = v.id;
        return false;
    end if;
    if exists (
        select from fullpass.outbox t
        where t.channel = 'alert' and t.told_at > v_hour_ago and t.about = v.about
          and t.event = v.event and t.data ->> 'trouble' is not distinct from v.data ->> 'trouble'
          and (v.event <> 'reached'
               or t.told_at > v.at - make_interval(secs => (v.data ->> 'seconds')::float8))
          and not exists (
              select from fullpass.outbox r
              where r.channel = 'alert' and r.told_at > t.told_at and r.about = v.about
                and r.event <> v.event)
    ) then
        -- Of jobs all alike ones at once: thousands that fail must not hold up another alert.
        update fullpass.outbox set ended_at = clock_timestamp(), outcome = 'repeated'
        where id = v.id
           or v.job_id is not null and channel = 'alert' and ended_at is null and attempts = 0
              and job_id is not null and about = v.about and event = v.event;
        return false;
    end if;
    if v.about in ('work', 'database') then
        select told_at + interval '1 hour' into v_turn from fullpass.outbox
        where channel = 'alert' and told_at > v_hour_ago and about = v.about
        order by told_at desc offset p_per_hour - 1 limit 1;
        update fullpass.outbox set due_at = greatest(v_turn, at + interval '2 minutes')
        where id = v.id and v_turn is not null;
        return v_turn is null;
    end if;
    select count(*) into v_told from fullpass.outbox
    where channel = 'alert' and told_at > v_hour_ago;
    if v_told >= p_per_hour then
        update fullpass.outbox set ended_at = clock_timestamp(), outcome = 'summed up'
        where id = v.id;
        update fullpass.outbox
        set data = jsonb_build_object('alerts', (data ->> 'alerts')::int + 1)
        where channel = 'alert' and event = 'more' and ended_at is null and attempts = 0;
        if not found then
            insert into fullpass.outbox (channel, event, about, data, due_at)
            values ('alert', 'more', 'more', '{"alerts": 1}', clock_timestamp() + interval '1 hour');
        end if;
        return false;
    end if;
    if v_told = p_per_hour - 1 then
        update fullpass.outbox set data = data || '{"last": true}' where id = v.id;
    end if;
    return true;
end
$$;

-- Gives up to p_limit due messages of each channel to the caller, and puts each off before it is
-- sent: half a minute at first, three times that each time, six hours at most, a quarter more or less
-- at random. The first is longer than any attempt may take.
create or replace function fullpass.take_messages(p_channels text[], p_limit int)
returns setof fullpass.outbox language plpgsql as $$
declare
    v fullpass.outbox;
    v_channel text;
    v_taken int;
begin
    foreach v_channel in array p_channels loop
        v_taken := 0;
        if v_channel = 'alert' then
            perform from fullpass.channels where channel = v_channel for update skip locked;
            continue when not found;  -- another worker decides what is worth telling
        end if;
        for v in
            select * from fullpass.outbox
            where channel = v_channel and ended_at is null and due_at <= clock_timestamp()
            order by due_at
            limit case when v_channel = 'alert' then 200 else p_limit end
            for update skip locked
        loop
            if v.at < clock_timestamp() - interval '3 days 12 hours' then
                perform fullpass.not_told(v.id, 'nobody could tell it in time', true);
                continue;
            end if;
            continue when v_channel = 'alert' and v.attempts = 0
                          and not fullpass.worth_telling(v);
            update fullpass.outbox set
                attempts = attempts + 1, told_at = coalesce(told_at, clock_timestamp()),
                due_at = clock_timestamp() + make_interval(
                    secs => least(21600, 30 * power(3, least(attempts, 20)))
                            * (0.75 + random() / 2))
            where id = v.id
            returning * into v;
            return next v;
            v_taken := v_taken + 1;
            exit when v_taken >= p_limit;
        end loop;
    end loop;
end
$$;

create or replace function fullpass.told(p_id uuid) returns void language sql as $$
    update fullpass.outbox set ended_at = clock_timestamp(), outcome = 'delivered', error = null
    where id = p_id and ended_at is null
$$;

-- An attempt failed. Final, or after three days, the message is let go and its job's timeline says
-- so; returns true then.
create or replace function fullpass.not_told(p_id uuid, p_error text, p_final boolean)
returns boolean language plpgsql as $$
declare
    v fullpass.outbox;
begin
    update fullpass.outbox set
        error = p_error,
        ended_at = case when p_final or due_at > at + interval '3 days' then clock_timestamp() end,
        outcome = case when p_final then 'dropped'
                       when due_at > at + interval '3 days' then 'given up' end
    where id = p_id and ended_at is null
    returning * into v;
    if v.ended_at is null then
        return false;
    end if;
    if v.job_id is not null then
        insert into fullpass.job_events (job_id, event, data)
        values (v.job_id, 'not_told', jsonb_build_object(
            'channel', v.channel, 'of', v.event, 'attempts', v.attempts, 'reason', p_error));
    end if;
    if v.channel <> 'alert' and v.outcome = 'given up' then
        perform fullpass.tell_alert('not_told', 'not told: ' || v.channel, jsonb_build_object(
            'channel', v.channel, 'attempts', v.attempts, 'reason', p_error));
    end if;
    return true;
end
$$;
