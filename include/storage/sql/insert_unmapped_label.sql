insert into staging.unmapped_labels (source, field, raw_value, count, load_id)
values (%(source)s, %(field)s, %(raw_value)s, %(count)s, %(load_id)s)
