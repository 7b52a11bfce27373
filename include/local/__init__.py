"""The embedded stack: PostgreSQL, Airflow and the small model on one machine."""
