"""What a load does to the shape of the warehouse, for a role that does not own it."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the functions that act in the owner's name."""
    text = Path(__file__).parent.with_name("0007_restricted_loads.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(text.replace("%", "%%"))  # the driver would take format's %I for a parameter


def downgrade() -> None:
    """Leave it to the owner again."""
    for function in (
        "create_incoming(text)",
        "drop_incoming(text)",
        "create_partition(text)",
        "index_samples(text)",
        "share_with_caller(regclass, text[])",
        "check_name(text, text)",
    ):
        op.execute(f"drop function staging.{function}")
