-- Current accepted responses of a mode: the first ones by hash, so that every run looks at the same clips.
select r.source, r.sample_id, r.mode, r.prompt_hash, r.response, r.finish_reason, s.text,
    s.emotion, s.gender, s.age, s.pace, s.volume, s.accent
from generation.responses r
join generation.prompts p
    on p.source = r.source and p.sample_id = r.sample_id and p.mode = r.mode and p.prompt_hash = r.prompt_hash
join staging.samples s on s.source = r.source and s.sample_id = r.sample_id and s.row_hash = p.row_hash
where r.mode = %(mode)s and r.source = any(%(sources)s) and s.retired_at is null and r.verdict = 'accepted'
order by hashtextextended(r.sample_id, 0), r.sample_id
limit %(most)s
