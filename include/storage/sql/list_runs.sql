select * from generation.runs where updated_at >= %(since)s order by started_at, mode, shard
