-- {partition} is the source's partition, {index} the index's name. Full-text search needs no extension, which the
-- embedded server does not have; 'simple' neither stems nor drops words, in whatever language. A text vector has a size
-- limit: no transcript may fail a merge for being long.
create index if not exists {index} on {partition} using gin (to_tsvector('simple', left(text, 10000)))
