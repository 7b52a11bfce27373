-- Shards of the newest run that generated, and of any other that was heard of in the last minutes.
select *, updated_at < now() - interval '3 minutes' and status in ('running', 'loading model') as silent
from generation.runs
where updated_at > now() - interval '10 minutes'
    or run_id = (select run_id from generation.runs order by updated_at desc limit 1)
order by started_at desc, mode, shard
limit 200
