"""Plays with the exported policy beside this file.

python play.py                               1,000 steps on zeros: what a step takes
python play.py Hopper-v5 [return to ask for] an episode in an environment of Gymnasium (module:id imports module)
"""

import sys
import time

import numpy as np


def play(policy, env, target=0.0, seed=None, on_step=None):
    """The return of an episode in a Gymnasium environment, asked for ``target`` where the policy takes such a wish.
    ``on_step(shown, action)`` hears of every step."""
    observation, _ = env.reset(seed=seed)
    previous, wish, total, t, done = policy.about["first_action"], float(target), 0.0, 0, False
    start = policy.about.get("start", 0)
    reset = not (policy.about["keeps_memory"] and policy.state)
    while not done:
        shown = {"observation": observation, "previous_action": previous, "return_to_go": wish, "timestep": t}
        shown["reset"] = reset and t == 0
        if isinstance(observation, dict):
            shown |= {f"observation.{key}": value for key, value in observation.items()}
        if "action_masks" in policy.zeros:
            shown["action_masks"] = env.get_wrapper_attr("action_masks")()
        row = {name: np.array(value)[None] for name, value in shown.items() if name in policy.zeros}
        action = policy(row)[0]
        if on_step:
            on_step(row, action)
        previous = action - start if start else action
        given = action.copy()
        if given.shape != env.action_space.shape:
            given = given.reshape(env.action_space.shape)
        observation, reward, terminated, truncated, _ = env.step(given)
        total, wish, t, done = total + float(reward), wish - float(reward), t + 1, terminated or truncated
    return total


def main(arguments):
    from run import Policy

    policy = Policy()
    if arguments:
        import gymnasium

        about = policy.about
        own = about.get("env_kwargs", {}) if arguments[0] == about["env"] else {}
        env = gymnasium.make(arguments[0], **own)
        shown = policy.zeros.get("observation")
        if shown is not None and shown.shape[1:] != env.observation_space.shape:
            env = gymnasium.wrappers.FlattenObservation(env)
        print("return", play(policy, env, *map(float, arguments[1:2])))
    else:
        begin = time.perf_counter()
        for _ in range(1000):
            action = policy(policy.zeros)
        print(f"{1000 * (time.perf_counter() - begin):.0f} µs per step; the last action: {action[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
