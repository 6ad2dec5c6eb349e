-- The chain: each row's `hash` covers the row and the hash of the row before it, with a key that is
-- outside the database. Rows from before this version have none.

alter table calls add column arguments_digest blob;   -- of the arguments as received, keyed
alter table calls add column result_digest    blob;   -- of the result as received, keyed
alter table calls add column payload_digest   blob;   -- of what `payloads` keeps, keyed
alter table calls add column hash             blob;

-- What is on record beside calls; shares the numbers of `calls`.
create table entries (
    seq     integer primary key not null,
    at_ms   integer not null,
    kind    text not null,
    actor   text not null,
    subject text not null,
    detail  text not null,                            -- a JSON object
    hash    blob not null
) strict;

-- For the start of a router: did the last one end in order?
create index entries_runs on entries (seq) where kind in ('audit.started', 'audit.stopped');

-- One row: where the chain begins and ends.
create table ledger (
    id        integer primary key not null check (id = 1),
    chain     blob not null,                          -- identity of the chain
    key_id    blob not null,                          -- tells the key, not what it is
    base_seq  integer not null,                       -- the last row that is not in the chain
    base_hash blob not null,
    head_seq  integer not null,                       -- the last row
    head_hash blob not null,
    mac       blob not null                           -- over all of these, keyed
) strict;
