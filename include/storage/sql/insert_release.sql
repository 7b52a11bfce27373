insert into publish.releases (release_id, created_at, target, uri, commit, rows, manifest)
values (%(release_id)s, %(created_at)s, %(target)s, %(uri)s, %(commit)s, %(rows)s, %(manifest)s)
on conflict (target, release_id) do nothing
