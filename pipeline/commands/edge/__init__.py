"""Commands for bundles on their way to devices."""
