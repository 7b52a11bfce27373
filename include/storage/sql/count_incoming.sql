-- By group, so that a group whose rows got lost is named.
select file_group, reject_reason, count(*) as rows
from {incoming}
group by file_group, reject_reason
