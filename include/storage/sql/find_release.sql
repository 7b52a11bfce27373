select release_id from publish.releases where target = %(target)s and release_id = %(release_id)s
