"""Models that others have trained and published in the format of Hugging Face, as networks of this package."""
