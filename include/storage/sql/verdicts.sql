-- Verdicts on all texts written under the current prompts, accepted ones included.
select p.source, v.mode, v.verdict, count(*) as texts
from (
    select source, sample_id, mode, prompt_hash, verdict from generation.responses
    union all
    select source, sample_id, mode, prompt_hash, verdict from generation.attempts
) as v
join generation.prompts p
    on p.source = v.source and p.sample_id = v.sample_id and p.mode = v.mode and p.prompt_hash = v.prompt_hash
where p.source = any(%(sources)s)
    and (%(max_samples)s::integer is null or (p.source, p.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
group by p.source, v.mode, v.verdict
order by v.mode, (v.verdict = 'accepted') desc, sum(count(*)) over (partition by v.mode, v.verdict) desc, v.verdict,
    p.source
