"""The commands around the project: its settings and what lies in it, one file each."""
