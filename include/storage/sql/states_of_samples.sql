-- State of every prompt of some samples, given as two arrays of equal length.
select k.source, k.sample_id, p.mode, r.prompt_hash is not null as accepted, coalesce(a.tries, 0) as tries
from unnest(%(sources)s::text[], %(sample_ids)s::text[]) as k (source, sample_id)
join staging.samples s on s.source = k.source and s.sample_id = k.sample_id
join generation.prompts p on p.source = k.source and p.sample_id = k.sample_id and p.row_hash = s.row_hash
left join generation.responses r
    on r.source = p.source and r.sample_id = p.sample_id and r.mode = p.mode and r.prompt_hash = p.prompt_hash
    and r.verdict = 'accepted'
left join lateral (
    select max(attempt) as tries from generation.attempts
    where source = p.source and sample_id = p.sample_id and mode = p.mode and prompt_hash = p.prompt_hash
) a on true
