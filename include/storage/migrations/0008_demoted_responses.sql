-- A response that was accepted, and that a later rule rejects, was no failed try: its number is below zero.
comment on column generation.attempts.attempt is 'Tries are numbered from 1; below zero: once accepted, rejected by a later rule.';

create or replace view generation.work as
select
    p.source,
    p.sample_id,
    p.mode,
    p.mode_hash,
    p.prompt_hash,
    p.row_hash = s.row_hash as current,
    r.prompt_hash is not null as accepted,
    coalesce(a.tries, 0) as tries,
    coalesce(a.demoted, 0) as demoted
from staging.samples s
join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id
left join generation.responses r
    on r.source = p.source
    and r.sample_id = p.sample_id
    and r.mode = p.mode
    and r.prompt_hash = p.prompt_hash
    and r.verdict = 'accepted'
left join (
    select source, sample_id, mode, prompt_hash, greatest(max(attempt), 0) as tries, -least(min(attempt), 0) as demoted
    from generation.attempts
    group by source, sample_id, mode, prompt_hash
) a
    on a.source = p.source
    and a.sample_id = p.sample_id
    and a.mode = p.mode
    and a.prompt_hash = p.prompt_hash
where s.retired_at is null;
comment on view generation.work is 'Each sample and mode that is asked for: is its current prompt answered, how often was it tried, and how many accepted answers has a later rule rejected?';
