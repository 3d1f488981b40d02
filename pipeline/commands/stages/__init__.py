"""The commands of the stages, one file each."""
