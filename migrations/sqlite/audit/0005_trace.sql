-- The trace that a call belongs to, 32 hexadecimal digits (W3C Trace Context); null where its caller
-- named none and no span was recorded.

alter table calls add column trace_id text;
