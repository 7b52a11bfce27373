select reject_reason as reason, count(*) as rows
from staging.incoming
where load_id = %(load_id)s and reject_reason is not null
group by reject_reason
