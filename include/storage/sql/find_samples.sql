-- One page of samples in key order: {after} is > or <, {direction} asc or desc, and both are ours.
select s.source, s.sample_id, s.split, s.text, s.emotion, s.gender, s.age, s.pace, s.volume, s.accent, s.duration,
    s.row_hash
from staging.samples s
where s.retired_at is null
    and (%(source)s::text is null or s.source = %(source)s)
    and (%(emotion)s::text is null or s.emotion = %(emotion)s)
    and (%(gender)s::text is null or s.gender = %(gender)s)
    and (%(age)s::text is null or s.age = %(age)s)
    and (%(words)s::text is null or to_tsvector('simple', left(s.text, 10000)) @@ websearch_to_tsquery('simple', %(words)s))
    and (%(key_source)s::text is null or (s.source, s.sample_id) {after} (%(key_source)s, %(key_id)s))
order by s.source {direction}, s.sample_id {direction}
limit %(most)s
