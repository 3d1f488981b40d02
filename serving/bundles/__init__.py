"""Bundles: what they hold, how they are opened, and how they are verified."""
