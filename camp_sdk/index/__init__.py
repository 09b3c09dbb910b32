"""The living index: items in one SQLite file, added, changed, removed and filtered while they are searched."""
