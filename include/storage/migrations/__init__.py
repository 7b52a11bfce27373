"""The warehouse's schema, step by step (Alembic)."""
