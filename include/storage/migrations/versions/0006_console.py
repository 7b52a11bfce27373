"""Counts and indexes for the console."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables of counts, and the indexes that texts are found by."""
    op.get_bind().exec_driver_sql(Path(__file__).parent.with_name("0006_console.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop what the console alone needs."""
    for table in ("staging.label_counts", "staging.histograms", "generation.coverage", "generation.verdict_counts"):
        op.execute(f"drop table {table}")
    for index in (
        "generation.responses_created_at_source_mode_idx",
        "generation.attempts_created_at_source_mode_attempt_idx",
        "generation.attempts_verdict_source_sample_id_idx",
    ):
        op.execute(f"drop index {index}")
