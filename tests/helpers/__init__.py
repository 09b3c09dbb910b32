"""Shared by test modules: builders of data and bundles, stand-ins, runs of other processes. It holds no test."""
