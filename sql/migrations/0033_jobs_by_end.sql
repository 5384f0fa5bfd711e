-- no-transaction
-- What ended of late, on a table that may be large and busy when this runs.
create index concurrently if not exists processing_jobs_ended
    on public.processing_jobs (completed_at) where completed_at is not null;
