"""Recorded episodes: where they come from, what they hold, and how to draw sequences from them."""
