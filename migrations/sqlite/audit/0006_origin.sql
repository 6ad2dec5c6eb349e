-- Under which circumstances a call was made; null in rows from before this version.

alter table calls add column remote_address  text;    -- of its connection; null over the admin socket
alter table calls add column arguments_level text;    -- what was to be kept of its arguments
alter table calls add column results_level   text;    -- and of its result
alter table calls add column breaker         text;    -- how its last attempt found the circuit breaker
