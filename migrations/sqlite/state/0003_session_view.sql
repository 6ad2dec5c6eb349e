-- The view a session was opened at, to which it belongs; null for the whole catalogue.

alter table sessions add column view text;
