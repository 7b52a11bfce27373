-- Newest first. A release has a row for each target that it was published to.
select release_id, created_at, target, uri, commit, manifest
from publish.releases
order by created_at desc, release_id desc, target
limit %(most)s
