-- What was tried for a call, one row for each attempt, also where one was enough. Calls from before
-- this version have none.

create table attempts (
    seq         integer not null,                  -- the call's
    n           integer not null,                  -- from 1 on
    began_us    integer not null,                  -- since the call began
    took_us     integer not null,
    outcome     text not null,
    failure     text,                              -- null when there was none
    error       text,
    http_status integer,                           -- the server's, where it gave one
    probe       integer not null,                  -- 1: let through to see whether the server is back
    primary key (seq, n)
) strict, without rowid;
