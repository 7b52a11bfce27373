-- Samples whose prompts of the given modes are accepted or pending. However rare they are, no more than a window of
-- samples is looked at; its last one comes along, not matching, so that a search can go on from there.
with looked_at as materialized (
    select s.source, s.sample_id, s.split, s.text, s.emotion, s.gender, s.age, s.pace, s.volume, s.accent, s.duration,
        s.row_hash, row_number() over (order by s.source {direction}, s.sample_id {direction}) as place
    from staging.samples s
    where s.retired_at is null
        and (%(source)s::text is null or s.source = %(source)s)
        and s.source = any(%(sources)s)
        and (%(emotion)s::text is null or s.emotion = %(emotion)s)
        and (%(gender)s::text is null or s.gender = %(gender)s)
        and (%(age)s::text is null or s.age = %(age)s)
        and (%(words)s::text is null or to_tsvector('simple', left(s.text, 10000)) @@ websearch_to_tsquery('simple', %(words)s))
        and (%(key_source)s::text is null or (s.source, s.sample_id) {after} (%(key_source)s, %(key_id)s))
    order by s.source {direction}, s.sample_id {direction}
    limit %(window)s
)
select * from (
    select l.*, exists (
        select
        from unnest(%(modes)s::text[]) as m (mode)
        left join generation.prompts p
            on p.source = l.source and p.sample_id = l.sample_id and p.mode = m.mode and p.row_hash = l.row_hash
        where %(state)s = case
            when p.prompt_hash is null then 'pending'
            when exists (
                select from generation.responses r
                where r.source = p.source and r.sample_id = p.sample_id and r.mode = p.mode
                    and r.prompt_hash = p.prompt_hash and r.verdict = 'accepted'
            ) then 'accepted'
            when (
                select max(a.attempt) from generation.attempts a
                where a.source = p.source and a.sample_id = p.sample_id and a.mode = p.mode
                    and a.prompt_hash = p.prompt_hash
            ) >= %(max_attempts)s then 'given_up'
            else 'pending'
        end
    ) as matches
    from looked_at l
) as judged
where matches or place = %(window)s
order by place
limit %(most)s
