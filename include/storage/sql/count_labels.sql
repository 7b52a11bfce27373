-- Published labels beside what they became, for canonical columns and the published ones behind them (arrays of equal
-- length). What is rarer than the first 40 pairs of a field is counted together.
with pairs as (
    select f.field, s.raw ->> f.raw_column as raw_value,
        case f.field
            when 'emotion' then s.emotion when 'gender' then s.gender when 'age' then s.age
            when 'pace' then s.pace when 'volume' then s.volume when 'accent' then s.accent
        end as value,
        f.measured
    from staging.samples s
    cross join unnest(%(fields)s::text[], %(raw_columns)s::text[], %(measured)s::boolean[])
        as f (field, raw_column, measured)
    where s.source = %(source)s and s.retired_at is null
), counted as (
    -- A measurement has as many values as there are clips: its classes are counted here, its values by count_histogram.
    select field, case when measured then null else left(raw_value, 100) end as raw_value, value, count(*) as rows
    from pairs
    group by 1, 2, 3
), ranked as (
    select *, row_number() over (partition by field order by rows desc, raw_value, value) as place from counted
)
insert into staging.label_counts (source, field, raw_value, value, rows)
select %(source)s, field, raw_value, value, rows from ranked where place <= 40
union all
select %(source)s, field, null, '(others)', sum(rows) from ranked where place > 40 group by field
