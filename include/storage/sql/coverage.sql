-- Every staged sample and mode is accepted, pending or given up; one whose prompt is not planned yet is pending.
select
    s.source,
    m.mode,
    count(*) as staged,
    count(*) filter (where w.current and w.accepted) as accepted,
    count(*) filter (where w.current and not w.accepted and w.tries >= %(max_attempts)s) as given_up,
    count(*) filter (
        where w.current is not true or (not w.accepted and w.tries < %(max_attempts)s)
    ) as pending
from staging.samples s
cross join unnest(%(modes)s::text[]) as m (mode)
left join generation.work w on w.source = s.source and w.sample_id = s.sample_id and w.mode = m.mode
where s.source = any(%(sources)s) and s.retired_at is null
    and (%(max_samples)s::integer is null or (s.source, s.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
group by s.source, m.mode
order by s.source, m.mode
