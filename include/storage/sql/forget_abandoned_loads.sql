delete from staging.incoming where source = %(source)s and loaded_at < now() - interval '2 days'
