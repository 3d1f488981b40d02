"""The one network that is trained and exported: preprocessing, architecture, losses and answers."""
