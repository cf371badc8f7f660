"""Numbers with bounds. A larger one is a slip of the hand, or meant to take the machine down.

They are in a file of their own because jsonargparse reads the ``TYPE_CHECKING`` block of a file with fields, and would
find plain numbers there.
"""

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
