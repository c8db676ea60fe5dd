"""The tuning log: an append-only journal of records, where it lives, and what of it may be used again."""
