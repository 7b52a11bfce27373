select staging.create_partition(%(source)s)
