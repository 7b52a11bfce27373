"""What the DAGs share; the only part of include/ that imports Airflow."""
