"""Recorded episodes: where they come from, what they hold, and how sequences are drawn from them."""
