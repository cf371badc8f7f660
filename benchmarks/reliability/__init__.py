"""What the project promises of its reliability, counted: python -m benchmarks.reliability malformed | fuzz."""
