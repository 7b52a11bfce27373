select release_id, created_at, target, uri, rows from publish.releases order by created_at desc limit %(most)s
