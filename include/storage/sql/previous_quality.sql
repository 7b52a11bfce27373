-- The measures of the newest report before this run's.
select mode, measure, value
from generation.quality
where run_id = (
    select run_id from generation.quality where run_id <> %(run_id)s order by created_at desc limit 1
)
