-- A response that a rule rejects now becomes an attempt like any other, and its prompt is pending again.
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
select source, sample_id, mode, prompt_hash, response, finish_reason, prompt_tokens, response_tokens, seed, attempt,
    engine, %(rules_version)s, new_verdict, created_at
from demoted
on conflict (source, sample_id, mode, prompt_hash, attempt) do nothing
