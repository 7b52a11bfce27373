"""The warehouse: schemas staging, generation and publish."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    op.get_bind().exec_driver_sql(Path(__file__).parent.with_name("0001_warehouse.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop everything, data included."""
    op.execute("drop schema publish cascade; drop schema generation cascade; drop schema staging cascade")
