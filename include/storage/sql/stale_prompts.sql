-- Samples whose prompt under this mode is not known, or no longer what the sample or the mode says.
select s.sample_id, s.row_hash, s.text, s.emotion, s.gender, s.age, s.pace, s.volume, s.accent
from staging.samples s
left join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id and p.mode = %(mode)s
where s.source = %(source)s
    and s.retired_at is null
    and (p.sample_id is null or p.row_hash <> s.row_hash or p.mode_hash <> %(mode_hash)s)
