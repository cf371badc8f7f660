"""Numbers with bounds. A larger one is a slip of the hand, or meant to take the machine down.

They are in a file of their own because jsonargparse reads the ``TYPE_CHECKING`` block of a file with fields, and would
find plain numbers there.
"""

import hashlib
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    Size = int
    Episodes = int
    Environments = int
    Threads = int
    Seed = int
    Rate = float
else:
    Size = restricted_number_type("Size", int, [(">=", 1), ("<=", 1 << 20)])
    Episodes = restricted_number_type("Episodes", int, [(">=", 0), ("<=", 1 << 20)])
    Environments = restricted_number_type("Environments", int, [(">=", 1), ("<=", 1 << 14)])
    Threads = restricted_number_type("Threads", int, [(">=", 0), ("<=", 1 << 10)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", (1 << 63) - 1)])
    Rate = restricted_number_type("Rate", float, [(">", 0.0), ("<", float("inf"))])


def small_seed(seed: int) -> int:
    """Return a seed below 2**31, as Stable-Baselines3 takes them: itself, or one made of all bits of a larger one."""
    if seed < 1 << 31:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1
