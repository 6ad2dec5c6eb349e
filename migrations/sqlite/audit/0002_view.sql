-- Through which view a call came in; null for the whole catalogue.

alter table calls add column view text;
