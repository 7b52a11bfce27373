select release_id from publish.releases where release_id = %(release_id)s
