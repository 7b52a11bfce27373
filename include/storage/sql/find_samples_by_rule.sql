-- Samples with an attempt, under a current prompt of the given modes, that broke the rule; or, without a rule, that
-- were given up.
select distinct on (a.source, a.sample_id)
    s.source, s.sample_id, s.split, s.text, s.emotion, s.gender, s.age, s.pace, s.volume, s.accent, s.duration,
    s.row_hash
from generation.attempts a
join generation.prompts p
    on p.source = a.source and p.sample_id = a.sample_id and p.mode = a.mode and p.prompt_hash = a.prompt_hash
join staging.samples s
    on s.source = a.source and s.sample_id = a.sample_id and s.retired_at is null and s.row_hash = p.row_hash
where a.mode = any(%(modes)s)
    and (%(rule)s::text is null or a.verdict = %(rule)s)
    and (%(rule)s::text is not null or (
        a.attempt >= %(max_attempts)s and not exists (
            select from generation.responses r
            where r.source = a.source and r.sample_id = a.sample_id and r.mode = a.mode
                and r.prompt_hash = a.prompt_hash and r.verdict = 'accepted'
        )
    ))
    and (%(source)s::text is null or a.source = %(source)s)
    and (%(emotion)s::text is null or s.emotion = %(emotion)s)
    and (%(gender)s::text is null or s.gender = %(gender)s)
    and (%(age)s::text is null or s.age = %(age)s)
    and (%(words)s::text is null or to_tsvector('simple', left(s.text, 10000)) @@ websearch_to_tsquery('simple', %(words)s))
    and (%(key_source)s::text is null or (a.source, a.sample_id) {after} (%(key_source)s, %(key_id)s))
order by a.source {direction}, a.sample_id {direction}
limit %(most)s
