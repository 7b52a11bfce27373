"""A source's first load lets others read."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def _execute(text: str) -> None:
    op.get_bind().exec_driver_sql(text.replace("%", "%%"))  # the driver would take format's %I for a parameter


def upgrade() -> None:
    """Make partitions beside the table, then attach them."""
    _execute(Path(__file__).parent.with_name("0009_attached_partitions.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Make them in their place again, as 0007 says."""
    text = Path(__file__).parent.with_name("0007_restricted_loads.sql").read_text(encoding="utf-8")
    start, end = (text.index(f"{word} function staging.create_partition") for word in ("create", "comment on"))
    _execute(text[start:end].replace("create", "create or replace", 1))
