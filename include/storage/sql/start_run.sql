-- A shard begins, or goes on after an earlier attempt of its task: what that one did counts as done.
insert into generation.runs as earlier (run_id, mode, shard, shards, status, total)
values (%(run_id)s, %(mode)s, %(shard)s, %(shards)s, %(status)s, %(pending)s)
on conflict (run_id, mode, shard) do update set
    shards = excluded.shards, status = excluded.status, device = null, total = earlier.done + excluded.total,
    tokens_per_s = null, eta_s = null, updated_at = now()
returning run_id, mode, shard, shards, status, device, total, accepted, rejected, given_up, response_tokens, tokens_per_s,
    eta_s
