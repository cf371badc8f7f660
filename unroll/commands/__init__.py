"""What can be typed: a file for each command."""
