select distinct on (source) *
from staging.loads
where %(source)s::text is null or source = %(source)s
order by source, finished_at desc
