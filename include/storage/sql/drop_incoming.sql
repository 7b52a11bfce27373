select staging.drop_incoming(%(incoming)s)
