delete from staging.incoming
where load_id = %(load_id)s and (%(file_group)s::integer is null or file_group = %(file_group)s)
