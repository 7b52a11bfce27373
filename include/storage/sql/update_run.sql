update generation.runs set
    status = %(status)s, device = %(device)s, accepted = %(accepted)s, rejected = %(rejected)s, given_up = %(given_up)s,
    response_tokens = %(response_tokens)s, tokens_per_s = %(tokens_per_s)s, eta_s = %(eta_s)s, updated_at = now()
where run_id = %(run_id)s and mode = %(mode)s and shard = %(shard)s
