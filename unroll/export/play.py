"""Play with the exported policy beside this file.

python play.py                               measures 1,000 steps on zeros
python play.py Hopper-v5 [return to ask for] plays an episode in an environment of Gymnasium (module:id imports module)
"""

import sys
import time

import numpy as np

STEPS = 1000


def play(policy, env, target=None, seed=None, on_step=None):
    """Play an episode in a Gymnasium environment; return the sum of its rewards.

    ``target`` is the return to ask for, where the policy takes one; None: the policy's own default.
    ``on_step(shown, action)`` is called at every step with what the policy was shown.
    """
    observation, _ = env.reset(seed=seed)
    previous = policy.about["first_action"]
    start = policy.about.get("start", 0)
    to_go = policy.about.get("default_target", 0.0)
    if target is not None:
        to_go = float(target)
    total = 0.0
    t = 0

    # A policy that keeps its memory from episode to episode begins anew only where it has none.
    starts_anew = not (policy.about["keeps_memory"] and policy.state)
    done = False
    while not done:
        shown = {"observation": observation, "previous_action": previous, "return_to_go": to_go, "timestep": t}
        shown["reset"] = starts_anew and t == 0
        if isinstance(observation, dict):
            shown |= parts_of(observation, env, policy)
        if "action_masks" in policy.zeros:
            shown["action_masks"] = env.get_wrapper_attr("action_masks")()

        # One row of each input that this policy has.
        row = {name: np.array(value)[None] for name, value in shown.items() if name in policy.zeros}
        action = policy(row)[0]
        if on_step:
            on_step(row, action)

        # The policy counts its choices from 0, and holds actions of any shape as a row.
        previous = action
        if start:
            previous = action - start
        given = action.copy()
        if hasattr(env.action_space, "low"):  # the data's bounds may be wider than those of the environment
            low, high = (np.reshape(bound, given.shape) for bound in (env.action_space.low, env.action_space.high))
            given = np.clip(given, low, high)
        if given.shape != env.action_space.shape:
            given = given.reshape(env.action_space.shape)

        observation, reward, terminated, truncated, _ = env.step(given)
        total += float(reward)
        to_go -= float(reward)
        t += 1
        done = terminated or truncated
    return total


def parts_of(observation, env, policy):
    """Name the parts of a Dict as the policy does. Some policies take a part as a row, as Gymnasium flattens it."""
    shown = {}
    for key, value in observation.items():
        name = f"observation.{key}"
        zeros = policy.zeros.get(name)
        if zeros is not None and np.shape(value) != zeros.shape[1:]:
            import gymnasium

            value = gymnasium.spaces.flatten(env.observation_space[key], value)
        shown[name] = value
    return shown


def measure(policy):
    """Print the time of a step on zeros, and the last action."""
    begin = time.perf_counter()
    for _ in range(STEPS):
        action = policy(policy.zeros)
    seconds = time.perf_counter() - begin
    print(f"{1e6 * seconds / STEPS:.0f} µs per step; the last action: {action[0]}")


def main(arguments):
    from run import Policy

    policy = Policy()
    if not arguments:
        measure(policy)
        return
    import gymnasium

    about = policy.about
    name, *target = arguments
    if about.get("wrappers"):
        sys.exit(f"play.py: this policy observes {' and '.join(about['wrappers'])} too, which is not shown here")
    if target and "return_to_go" not in policy.zeros:
        sys.exit(f"play.py: this policy follows no return, so it cannot be asked for {target[0]}")

    # An id is the same with and without the module that registers it.
    env_kwargs = {}
    if name.rpartition(":")[2] == str(about["env"]).rpartition(":")[2]:
        env_kwargs = about.get("env_kwargs", {})
    sys.path.append("")  # a module may lie in the folder in which the command is typed
    asked = about.get("default_target", 0.0)
    if target:
        try:
            asked = float(target[0])
        except ValueError:
            sys.exit(f"play.py: a return is a number, not {target[0]}")
    try:
        env = gymnasium.make(name, **env_kwargs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        sys.exit(f"play.py: {' '.join(str(error).split())}; the policy learned in {about['env']}")
    shown = policy.zeros.get("observation")
    if shown is not None and shown.shape[1:] != env.observation_space.shape:
        env = gymnasium.wrappers.FlattenObservation(env)
    if "return_to_go" in policy.zeros:
        print("asked for", f"a return of {asked:g}" if asked < 1e38 else "the largest return that can be had")
    print("return", play(policy, env, asked))


if __name__ == "__main__":
    main(sys.argv[1:])
