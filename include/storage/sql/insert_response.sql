insert into generation.responses (
    source, sample_id, mode, prompt_hash, response, finish_reason, prompt_tokens, response_tokens, seed, attempt,
    engine, rules_version, verdict
) values (
    %(source)s, %(sample_id)s, %(mode)s, %(prompt_hash)s, %(response)s, %(finish_reason)s, %(prompt_tokens)s,
    %(response_tokens)s, %(seed)s, %(attempt)s, %(engine)s, %(rules_version)s, %(verdict)s
)
on conflict (source, sample_id, mode, prompt_hash) do nothing
