-- Published numbers in bars of equal width. What is no number was counted as unmapped by the load.
insert into staging.histograms (source, field, low, high, rows)
select %(source)s, %(field)s, bar * %(width)s::float8, (bar + 1) * %(width)s::float8, count(*)
from (
    select least(greatest(floor(number / %(width)s::float8), %(first)s), %(last)s) as bar
    from (
        select case
            when jsonb_typeof(raw -> %(raw_column)s) = 'number' then (raw ->> %(raw_column)s)::float8
            when raw ->> %(raw_column)s ~ '^\s*[-+]?[0-9]{1,12}(\.[0-9]{1,15})?\s*$' then (raw ->> %(raw_column)s)::float8
        end as number
        from staging.samples
        where source = %(source)s and retired_at is null
    ) as numbers
    where number is not null
) as bars
group by bar
