"""What Python code gives an agent is what is meant, or it is refused in one line before anything is learned."""

import pytest

from toy import make_agent
from unroll.errors import BackboneError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"condition": "returns"}, "condition must be best, return or none, not 'returns'"),
        ({"tokens": "x"}, "tokens must be fused or interleaved, not 'x'"),
        ({"memory": "x"}, "memory must be carried or window, not 'x'"),
        ({"dropout": -0.5}, "dropout must be at least 0 and less than 1, not -0.5"),
    ],
)
def test_a_word_that_the_policy_does_not_know_trains_no_other_agent(wrong, message):
    with pytest.raises(BackboneError, match=f"^{message}$"):
        make_agent(**wrong)
