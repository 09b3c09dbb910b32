"""Data sets on disk: importers of the files that others publish, the writer of ours, and the check of one.

An importer reads one format as a stream of records. The writer gathers them by picture, checks every picture, and
writes ``metadata.jsonl`` and ``dataset.json``. Nothing here copies a picture.
"""
