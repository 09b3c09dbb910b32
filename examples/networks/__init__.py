"""Networks that others published, as scorers: SCAN, SGRAF, and a two-tower model with generalized pooling."""
