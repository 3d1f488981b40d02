"""What the page is made of beside the reports: its templates, and the figures of speed."""
