"""The warehouse: the only package that speaks SQL."""
