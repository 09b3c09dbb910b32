"""A bundle as a model repository of NVIDIA's Triton Inference Server: `camp export-triton`."""
