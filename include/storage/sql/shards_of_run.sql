select *, updated_at < now() - interval '3 minutes' and status in ('running', 'loading model') as silent
from generation.runs
where run_id = %(run_id)s
order by mode, shard
