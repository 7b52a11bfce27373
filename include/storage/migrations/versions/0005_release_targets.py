"""Releases by target, and the samples that a narrowed run takes."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Key releases by target too; name the choice of samples."""
    op.get_bind().exec_driver_sql(
        Path(__file__).parent.with_name("0005_release_targets.sql").read_text(encoding="utf-8")
    )


def downgrade() -> None:
    """Keep each release once."""
    op.execute("drop function staging.first_samples")
    op.execute(
        "delete from publish.releases r using publish.releases o where r.release_id = o.release_id and r.ctid > o.ctid"
    )
    op.execute("alter table publish.releases drop constraint releases_pkey")
    op.execute("alter table publish.releases add primary key (release_id)")
