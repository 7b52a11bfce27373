"""Responses that a later rule rejects are no failed tries."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Count them apart."""
    op.get_bind().exec_driver_sql(
        Path(__file__).parent.with_name("0008_demoted_responses.sql").read_text(encoding="utf-8")
    )


def downgrade() -> None:
    """Give them the numbers after the last try, where they count as tries; the view says the same of them either way."""
    op.execute(
        """
        update generation.attempts a set attempt = t.tries - a.attempt
        from (
            select source, sample_id, mode, prompt_hash, greatest(max(attempt), 0) as tries
            from generation.attempts group by source, sample_id, mode, prompt_hash
        ) t
        where a.attempt < 0 and a.source = t.source and a.sample_id = t.sample_id and a.mode = t.mode
            and a.prompt_hash = t.prompt_hash
        """
    )
