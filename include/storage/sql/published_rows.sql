-- The rows of a source's split, in the corpus's order and a clip's modes together.
select s.source, s.sample_id, s.text, s.emotion, s.gender, s.age, s.pace, s.accent, s.volume,
    s.audio_file, s.audio_row_group, s.audio_row, r.mode, r.response
from staging.samples s
join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id and p.row_hash = s.row_hash
join generation.responses r
    on r.source = p.source and r.sample_id = p.sample_id and r.mode = p.mode and r.prompt_hash = p.prompt_hash
where s.source = %(source)s and s.retired_at is null and r.verdict = 'accepted' and r.mode = any(%(modes)s)
    and (%(max_samples)s::integer is null or (s.source, s.sample_id) in (
        select source, sample_id from staging.first_samples(array[%(source)s::text], %(max_samples)s)
    ))
order by s.audio_file, s.audio_row_group, s.audio_row, r.mode
