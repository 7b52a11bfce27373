"""What a deployment past one machine needs: its secrets, its databases, and whether it is well."""
