insert into generation.coverage (source, mode, staged, accepted, pending, given_up, counted_at)
values (%(source)s, %(mode)s, %(staged)s, %(accepted)s, %(pending)s, %(given_up)s, %(counted_at)s)
on conflict (source, mode) do update set
    staged = excluded.staged, accepted = excluded.accepted, pending = excluded.pending, given_up = excluded.given_up,
    counted_at = excluded.counted_at
