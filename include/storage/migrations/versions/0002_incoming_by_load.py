"""Every load has a table of its own for the rows that come in."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make incoming a template."""
    op.get_bind().exec_driver_sql(
        Path(__file__).parent.with_name("0002_incoming_by_load.sql").read_text(encoding="utf-8")
    )


def downgrade() -> None:
    """Put the common table back; loads under way are lost and have to be run again."""
    op.execute("drop table staging.incoming_loads")
    op.execute("delete from staging.incoming")
    op.execute("alter table staging.incoming add column load_id text not null")
    op.execute("alter table staging.incoming add column loaded_at timestamptz not null default now()")
    op.execute("create index on staging.incoming (load_id, file_group)")
