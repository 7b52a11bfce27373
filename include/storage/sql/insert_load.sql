insert into staging.loads (
    load_id, source, revision, published_at, code_hash, read, staged, unchanged, changed, moved, retired, rejected, seconds
) values (
    %(load_id)s, %(source)s, %(revision)s, %(published_at)s, %(code_hash)s, %(read)s, %(staged)s, %(unchanged)s, %(changed)s,
    %(moved)s, %(retired)s, %(rejected)s, %(seconds)s
)
