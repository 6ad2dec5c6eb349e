-- Circuit breakers: how each stands, and how it came to it.

create table breakers (
    server             text not null references servers (name) on delete cascade,
    replica            text not null default '',   -- which router's; '' while there is but one
    tool               text not null default '',   -- '' where the breaker is the whole server's
    state              text not null,
    failures           integer not null,           -- in a row
    trips              integer not null,           -- openings since it was last closed by success
    generation         integer not null,           -- counts transitions
    opened_at_ms       integer,                    -- when the open or forced state began
    open_for_ms        integer,                    -- null where it does not end by itself
    last_failure_at_ms integer,
    reason             text,
    last_error         text,
    primary key (server, replica, tool)
) strict, without rowid;

-- No foreign key to servers: the history outlives them.
create table breaker_events (
    id          integer primary key not null,
    n           integer not null,                  -- counts its server's events: when to trim
    at_ms       integer not null,
    server      text not null,
    replica     text not null default '',
    tool        text not null default '',
    from_state  text not null,
    to_state    text not null,
    reason      text not null,
    failures    integer not null,
    trips       integer not null,
    open_for_ms integer,
    error       text,
    actor       text,
    note        text                               -- what the actor gave as the reason
) strict;

create index breaker_events_by_server on breaker_events (server, id);
