"""What several test modules use: builders of data and bundles, stand-ins, and runs of other processes. It holds no test."""
