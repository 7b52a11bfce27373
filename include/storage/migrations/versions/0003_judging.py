"""What judged a response, and the measures of every quality report."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Name the judge by text; keep the measures."""
    op.get_bind().exec_driver_sql(Path(__file__).parent.with_name("0003_judging.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Keep the version alone."""
    op.execute("drop table generation.quality")
    for table in ("responses", "attempts"):
        column = "rules_version type integer using split_part(rules_version, '-', 1)::integer"
        op.execute(f"alter table generation.{table} alter column {column}")
