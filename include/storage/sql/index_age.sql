-- {partition} is the source's partition, {index} the index's name.
create index if not exists {index} on {partition} (age, source, sample_id)
