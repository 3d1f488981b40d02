"""What reaches beyond this machine's terminal: a bundle in a browser."""
