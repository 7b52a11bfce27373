-- Measures of the newest reports, oldest first.
select q.run_id, q.mode, q.measure, q.value, newest.at
from generation.quality q
join (
    select run_id, max(created_at) as at from generation.quality group by run_id order by at desc limit %(most)s
) as newest on newest.run_id = q.run_id
order by newest.at, q.mode, q.measure
