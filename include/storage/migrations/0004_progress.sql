-- Prompts that this run has dealt with, over all attempts of its task; total counts them and those that are left.
alter table generation.runs add column done integer not null generated always as (accepted + given_up) stored;
comment on table generation.runs is 'Live progress of one shard of a mode in a run, over all attempts of its task: done and left make total.';
comment on column generation.runs.status is 'loading model, running, done, failed, stopped (by SIGTERM), stalled (by the watchdog); a killed task leaves it as it was.';
comment on column generation.runs.tokens_per_s is 'Response tokens a second over the last minute.';
comment on column generation.runs.eta_s is 'Seconds left at the pace of the last minute.';
