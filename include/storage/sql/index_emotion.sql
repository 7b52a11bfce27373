-- {partition} is the source's partition, {index} the index's name.
create index if not exists {index} on {partition} (emotion, source, sample_id)
