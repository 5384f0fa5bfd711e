-- no-transaction
-- Finding a conversation's chunks, on a table that may be large and busy when this runs.
create index concurrently if not exists conversation_chunks_by_conversation
    on public.conversation_chunks (user_id, conversation_id);
