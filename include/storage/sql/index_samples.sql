select staging.index_samples(%(source)s)
