"""What `python -m runtime.serve` is made of; needs the extra `web`."""
