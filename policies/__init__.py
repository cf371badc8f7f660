"""How to act: networks from observations to actions, with a backbone as their memory."""

if __name__ == "policies":
    raise ImportError("this folder is the package unroll.policies: import unroll.policies")
