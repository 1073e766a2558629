"""The sampling program."""
