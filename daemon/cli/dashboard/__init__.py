"""`fullpass dashboard`: a read-only page on the queue, its workers and each job.

`serve` starts it and decides who may look, `site` answers requests, `frame` is what every page has,
`now`, `past` and `job` are the pages, `charts` draws. All of it says what the ops views and
`daemon.ops` say; nothing here writes, and no word of a conversation is shown. The web library comes
with the extra `dashboard` and is imported when the command runs, never by a worker.
"""
