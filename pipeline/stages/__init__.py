"""The stages of dvc.yaml, from pull to report, and the tools beside them: tune and results."""
