"""Past one machine: an index in parts, encoded by many processes."""
