"""`camp serve`: searches over HTTP. The packages of the extra `server` are imported here and nowhere else."""
