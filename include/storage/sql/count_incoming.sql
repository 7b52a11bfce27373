-- By group, so that a group whose rows got lost is named.
select file_group, reject_reason, count(*) as rows
from staging.incoming
where load_id = %(load_id)s
group by file_group, reject_reason
