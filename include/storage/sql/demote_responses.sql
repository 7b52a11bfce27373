-- A response that a rule rejects now goes to the attempts, and its prompt is pending again. It was no failed try, so it
-- is numbered below zero, where it does not count against the most there may be.
with demoted as (
    delete from generation.responses r
    using new_verdicts v
    where v.verdict <> 'accepted'
        and r.source = v.source and r.sample_id = v.sample_id and r.mode = v.mode and r.prompt_hash = v.prompt_hash
    returning r.*, v.verdict as new_verdict
)
insert into generation.attempts (
    source, sample_id, mode, prompt_hash, response, finish_reason, prompt_tokens, response_tokens, seed, attempt,
    engine, rules_version, verdict, created_at
)
select d.source, d.sample_id, d.mode, d.prompt_hash, d.response, d.finish_reason, d.prompt_tokens, d.response_tokens,
    d.seed, a.lowest - 1, d.engine, %(rules_version)s, d.new_verdict, d.created_at
from demoted d
cross join lateral (
    select coalesce(least(min(attempt), 0), 0) as lowest from generation.attempts
    where source = d.source and sample_id = d.sample_id and mode = d.mode and prompt_hash = d.prompt_hash
) a
