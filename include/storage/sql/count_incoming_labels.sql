-- {column} is a label column; the most frequent label first.
select {column} as label, count(*) as rows
from {incoming}
where reject_reason is null and {column} is not null
group by {column}
order by rows desc, label
