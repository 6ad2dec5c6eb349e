-- Registry, catalogue, callers and administrative acts. Times are milliseconds since 1970, UTC.

create table servers (
    name                  text primary key not null,
    transport             text not null,
    spec                  text not null,           -- JSON as written; literal header and env values sealed
    enabled               integer not null,        -- what the file or the request says
    enabled_override      integer,                 -- what an operator said since, which wins
    retired               integer not null default 0, -- gone from the file
    source                text not null,
    revision              integer not null,
    created_at_ms         integer not null,
    updated_at_ms         integer not null,
    protocol_version      text,                    -- from here on: what the last discovery found
    dialect               text,
    server_info           text,
    instructions          text,
    discovery_ok_at_ms    integer,
    discovery_error       text,
    discovery_error_at_ms integer
) strict;

create table tool_definitions (
    hash       blob primary key not null,
    definition blob not null,                      -- byte for byte as received
    size_bytes integer not null
) strict;

create table tools (
    server           text not null references servers (name) on delete cascade,
    name             text not null,
    hash             blob not null references tool_definitions (hash),
    status           text not null,
    position         integer not null,             -- place in the server's list
    first_seen_at_ms integer not null,
    last_seen_at_ms  integer not null,
    primary key (server, name)
) strict, without rowid;

-- No foreign key to servers: the history outlives them.
create table tool_history (
    id       integer primary key not null,
    server   text not null,
    tool     text not null,
    old_hash blob,
    new_hash blob,
    kind     text not null,
    at_ms    integer not null,
    actor    text
) strict;

create index tool_history_by_tool on tool_history (server, tool, id);

create table keys (
    id              text primary key not null,
    name            text not null,
    hash            blob not null unique,          -- SHA-256; the key itself is never stored
    scopes          text not null,
    created_at_ms   integer not null,
    expires_at_ms   integer,
    last_used_at_ms integer,
    revoked_at_ms   integer
) strict;

create unique index keys_name_in_force on keys (name) where revoked_at_ms is null;

create table sessions (
    hash             blob primary key not null,    -- SHA-256 of the session id
    caller           text not null,
    protocol_version text not null,
    client_name      text not null,
    client_version   text not null,
    capabilities     text,
    created_at_ms    integer not null,
    last_seen_at_ms  integer not null
) strict, without rowid;

create table events (
    id      integer primary key not null,
    at_ms   integer not null,
    actor   text not null,
    kind    text not null,
    subject text not null,
    detail  text not null                          -- JSON
) strict;
