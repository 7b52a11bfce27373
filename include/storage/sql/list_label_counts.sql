select field, raw_value, value, rows from staging.label_counts
where source = %(source)s
order by field, (value = '(others)') is true, rows desc, raw_value, value
