-- The kept counts, and what was written since: every response and attempt after a count belongs to a current prompt.
with accepted as (
    select r.source, r.mode, count(*) as rows
    from generation.responses r
    join generation.coverage c on c.source = r.source and c.mode = r.mode
    where r.created_at > (select min(counted_at) from generation.coverage) and r.created_at > c.counted_at
    group by r.source, r.mode
), given_up as (
    select a.source, a.mode, count(*) as rows
    from generation.attempts a
    join generation.coverage c on c.source = a.source and c.mode = a.mode
    where a.created_at > (select min(counted_at) from generation.coverage) and a.created_at > c.counted_at
        and a.attempt >= %(max_attempts)s
    group by a.source, a.mode
)
select c.source, c.mode, c.staged,
    c.accepted + coalesce(a.rows, 0) as accepted,
    greatest(c.pending - coalesce(a.rows, 0) - coalesce(g.rows, 0), 0) as pending,
    c.given_up + coalesce(g.rows, 0) as given_up,
    c.counted_at
from generation.coverage c
left join accepted a on a.source = c.source and a.mode = c.mode
left join given_up g on g.source = c.source and g.mode = c.mode
order by c.source, c.mode
