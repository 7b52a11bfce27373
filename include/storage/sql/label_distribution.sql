select s.source, l.field, l.value, count(*) as rows
from staging.samples s
cross join lateral (values
    ('emotion', s.emotion), ('gender', s.gender), ('age', s.age), ('pace', s.pace), ('volume', s.volume),
    ('accent', s.accent)
) as l (field, value)
where s.source = any(%(sources)s) and s.retired_at is null and l.value is not null
    and (%(max_samples)s::integer is null or (s.source, s.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
group by s.source, l.field, l.value
order by s.source, l.field, rows desc, l.value
