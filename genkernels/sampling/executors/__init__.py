"""What runs a sampling program."""
