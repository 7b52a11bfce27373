-- A load's id is "<source>/<run_id>/<random>".
select * from staging.loads
where source = %(source)s and starts_with(load_id, %(source)s || '/' || %(run_id)s || '/')
order by finished_at
