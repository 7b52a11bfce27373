"""Everything the DAGs do, importable and testable without Airflow (see docs/architecture.md)."""
