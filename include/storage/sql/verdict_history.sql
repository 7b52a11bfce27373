-- Verdict counts of the newest reports, oldest first.
select v.run_id, v.source, v.mode, v.verdict, v.texts, v.counted_at
from generation.verdict_counts v
join (
    select run_id, max(counted_at) as at from generation.verdict_counts group by run_id order by at desc limit %(most)s
) as newest on newest.run_id = v.run_id
order by newest.at, v.mode, v.verdict, v.source
