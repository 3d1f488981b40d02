"""MLPerf's load patterns, and the highest rate that keeps a limit."""
