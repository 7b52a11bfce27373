-- The counts stay as the last stored batch left them.
update generation.runs set status = %(status)s, eta_s = null, updated_at = now()
where run_id = %(run_id)s and mode = %(mode)s and shard = %(shard)s
