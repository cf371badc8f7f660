"""Play seeded episodes, score them, show them."""
