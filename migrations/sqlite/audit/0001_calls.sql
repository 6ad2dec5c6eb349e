-- The ledger. Append-only; `seq` is the order of commits and has no gaps.
-- Indexes beyond `seq` and the time-ordered `id` cost the writer three to four times its speed.

create table calls (
    seq              integer primary key not null,
    id               blob not null unique,         -- UUIDv7
    started_at_ms    integer not null,
    caller           text not null,
    session          text,
    client_name      text,
    client_version   text,
    entrance         text not null,                -- mcp | rest
    protocol_version text,
    tool             text not null,                -- as exposed, or as asked when unknown
    upstream_tool    text,
    server           text,
    definition_hash  blob,
    outcome          text not null,
    error_code       text,
    error            text,
    failure          text,
    http_status      integer not null,
    attempts         integer not null,
    queue_us         integer not null,
    upstream_us      integer not null,
    total_us         integer not null,
    request_bytes    integer not null,
    response_bytes   integer not null
) strict;

-- Apart from the calls, so that they can be erased without touching the ledger.
create table payloads (
    seq       integer primary key not null,
    arguments text,
    result    text
) strict;
