"""How to act: networks from observations to actions, with a backbone as their memory."""
