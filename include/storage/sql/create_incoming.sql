select staging.create_incoming(%(incoming)s)
