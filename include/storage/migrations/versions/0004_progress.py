"""Progress of a run adds up over the attempts of its tasks."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Show what is done."""
    op.get_bind().exec_driver_sql(Path(__file__).parent.with_name("0004_progress.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Leave it to be added up."""
    op.execute("alter table generation.runs drop column done")
