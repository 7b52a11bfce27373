insert into generation.modes (mode_hash, mode, inputs) values (%(mode_hash)s, %(mode)s, %(inputs)s)
on conflict (mode_hash) do nothing
