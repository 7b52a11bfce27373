"""Incoming rows are found by block range."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Replace the index."""
    op.get_bind().exec_driver_sql(Path(__file__).parent.with_name("0002_incoming_brin.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Put the tree back."""
    op.execute("drop index staging.incoming_load_idx")
    op.execute("create index on staging.incoming (load_id, file_group)")
