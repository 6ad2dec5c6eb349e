-- What servers offer beside tools.

create table offers (
    server     text not null references servers (name) on delete cascade,
    kind       text not null,                      -- prompt, resource or template
    position   integer not null,                   -- place in the server's list
    key        text not null,                      -- name, address or template
    definition blob not null,                      -- byte for byte as received
    primary key (server, kind, position)
) strict;
