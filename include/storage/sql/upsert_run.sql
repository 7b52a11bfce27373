insert into generation.runs (
    run_id, mode, shard, shards, status, device, total, accepted, rejected, given_up, response_tokens, tokens_per_s, eta_s
) values (
    %(run_id)s, %(mode)s, %(shard)s, %(shards)s, %(status)s, %(device)s, %(total)s, %(accepted)s, %(rejected)s,
    %(given_up)s, %(response_tokens)s, %(tokens_per_s)s, %(eta_s)s
)
on conflict (run_id, mode, shard) do update set
    shards = excluded.shards, status = excluded.status, device = excluded.device, total = excluded.total,
    accepted = excluded.accepted, rejected = excluded.rejected, given_up = excluded.given_up,
    response_tokens = excluded.response_tokens, tokens_per_s = excluded.tokens_per_s, eta_s = excluded.eta_s,
    updated_at = now()
