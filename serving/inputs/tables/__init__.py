"""Rows of tables: CSV, JSON Lines, Parquet and Arrow, and the columns that they have in common."""
