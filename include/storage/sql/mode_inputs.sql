select mode_hash, inputs from generation.modes where mode_hash = any(%(hashes)s)
