-- Consolidation: facts that know their meaning across sources, applied as a difference.

alter table fullpass.facts
    add column if not exists meaning uuid,            -- what facts of several sources share
    add column if not exists mentions int not null default 1;

create index if not exists extracted_facts_by_user
    on fullpass.extracted_facts (user_id, id) where rejected is null;

-- Facts of a consolidation on their way into fullpass.facts. Unlogged: whoever comes next starts
-- over, so losing them costs a step and nothing else.
create unlogged table if not exists fullpass.staged_facts (
    user_id uuid not null,
    id uuid not null,
    meaning uuid not null,
    source text not null,
    category text not null,
    slot text not null,
    statement text not null,
    polarity text not null,
    confidence text not null,
    evidence jsonb not null,
    mentions int not null,
    observed_at timestamptz,
    first_observed_at timestamptz,
    valid_from date,
    superseded_by uuid,
    primary key (user_id, id)
);

-- Stages facts: the i-th has its wording from extracted fact p_wordings[i]; p_rows and p_fact_of
-- name every mention and the fact it belongs to. Evidence is every distinct quote, oldest first; of
-- more than p_most the oldest and the newest stay, and `mentions` still counts them all.
create or replace function fullpass.stage_facts(
    p_user uuid, p_ids uuid[], p_meanings uuid[], p_sources text[], p_wordings bigint[],
    p_slots text[], p_confidences text[], p_valid_from date[], p_superseded_by uuid[],
    p_rows bigint[], p_fact_of uuid[], p_most int
) returns void language sql as $$
    with distinct_mentions as (
        select m.fact, e.conversation_id, e.message_id, e.quote,
               min(e.origin) as origin, min(e.observed_at) as at
        from unnest(p_rows, p_fact_of) as m (row_id, fact)
        join fullpass.extracted_facts e on e.id = m.row_id
        group by m.fact, e.conversation_id, e.message_id, e.quote
    ), placed as (
        select *,
               row_number() over (
                   partition by fact
                   order by at nulls first, conversation_id, message_id, quote) as place,
               count(*) over (partition by fact) as of_all
        from distinct_mentions
    ), evidence as (
        select fact, max(of_all)::int as mentions, min(at) as first_at, max(at) as last_at,
               jsonb_agg(
                   jsonb_build_object(
                       'conversation_id', conversation_id, 'message_id', message_id,
                       'quote', quote, 'kind', origin, 'at', at)
                   order by place) filter (where place = 1 or place > of_all - p_most + 1)
                   as evidence
        from placed group by fact
    )
    insert into fullpass.staged_facts (
        user_id, id, meaning, source, category, slot, statement, polarity, confidence, evidence,
        mentions, observed_at, first_observed_at, valid_from, superseded_by)
    select p_user, f.id, f.meaning, f.source, w.category, f.slot, w.statement, w.polarity,
           f.confidence, e.evidence, e.mentions, e.last_at, e.first_at, f.valid_from,
           f.superseded_by
    from unnest(p_ids, p_meanings, p_sources, p_wordings, p_slots, p_confidences, p_valid_from,
                p_superseded_by)
        as f (id, meaning, source, wording, slot, confidence, valid_from, superseded_by)
    join fullpass.extracted_facts w on w.id = f.wording
    join evidence e on e.fact = f.id
$$;

-- Makes the person's facts what was staged, in one step and touching only what differs: a fact that
-- says and proves what it did keeps its row.
create or replace function fullpass.apply_facts(p_user uuid, p_job uuid)
returns jsonb language plpgsql as $$
declare
    v_removed int;
    v_changed int;
    v_added int;
begin
    delete from fullpass.facts f
    where f.user_id = p_user and not exists (
        select from fullpass.staged_facts s where s.user_id = p_user and s.id = f.id);
    get diagnostics v_removed = row_count;

    update fullpass.facts f set
        job_id = p_job, meaning = s.meaning, source = s.source, category = s.category,
        slot = s.slot, statement = s.statement, polarity = s.polarity,
        confidence = s.confidence, evidence = s.evidence, mentions = s.mentions,
        observed_at = s.observed_at, first_observed_at = s.first_observed_at,
        valid_from = s.valid_from, superseded_by = s.superseded_by
    from fullpass.staged_facts s
    where s.user_id = p_user and f.user_id = p_user and f.id = s.id
      and (f.meaning, f.source, f.category, f.slot, f.statement, f.polarity, f.confidence,
           f.evidence, f.mentions, f.observed_at, f.first_observed_at, f.valid_from,
           f.superseded_by)
          is distinct from
          (s.meaning, s.source, s.category, s.slot, s.statement, s.polarity, s.confidence,
           s.evidence, s.mentions, s.observed_at, s.first_observed_at, s.valid_from,
           s.superseded_by);
    get diagnostics v_changed = row_count;

    insert into fullpass.facts (
        id, user_id, source, job_id, category, slot, statement, polarity, confidence, evidence,
        mentions, meaning, observed_at, first_observed_at, valid_from, superseded_by)
    select s.id, p_user, s.source, p_job, s.category, s.slot, s.statement, s.polarity,
           s.confidence, s.evidence, s.mentions, s.meaning, s.observed_at, s.first_observed_at,
           s.valid_from, s.superseded_by
    from fullpass.staged_facts s
    where s.user_id = p_user and not exists (select from fullpass.facts f where f.id = s.id);
    get diagnostics v_added = row_count;

    delete from fullpass.staged_facts where user_id = p_user;
    return jsonb_build_object('removed', v_removed, 'changed', v_changed, 'added', v_added);
end
$$;

-- An erasure takes along what was on its way.
create or replace function fullpass.drop_staged_facts() returns trigger language plpgsql as $$
begin
    delete from fullpass.staged_facts where user_id = new.user_id;
    return null;
end
$$;
create or replace trigger erasures_drop_staged_facts
    after insert or update on fullpass.erasures
    for each row execute function fullpass.drop_staged_facts();
