"""The embedded profile: PostgreSQL, Airflow and the small model on one machine."""
