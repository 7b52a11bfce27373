"""The console: the dataset in the Airflow UI, read-only. `plugins/sift_console.py` mounts it into Airflow."""
