-- Everything that was ever written for a sample, newest first; `current` is what its prompts ask for now.
select t.*, p.prompt_hash is not null as current, m.inputs
from (
    select source, sample_id, mode, prompt_hash, attempt, response, finish_reason, prompt_tokens, response_tokens, seed,
        engine, rules_version, verdict, created_at
    from generation.responses where source = %(source)s and sample_id = %(sample_id)s
    union all
    select source, sample_id, mode, prompt_hash, attempt, response, finish_reason, prompt_tokens, response_tokens, seed,
        engine, rules_version, verdict, created_at
    from generation.attempts where source = %(source)s and sample_id = %(sample_id)s
) as t
left join generation.prompts p
    on p.source = t.source and p.sample_id = t.sample_id and p.mode = t.mode and p.prompt_hash = t.prompt_hash
left join generation.modes m on m.mode_hash = p.mode_hash
order by t.mode, t.created_at desc, t.attempt desc
limit 200
