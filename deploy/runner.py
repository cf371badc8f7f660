"""Runs the exported policy beside this file.

    python run.py                               1,000 steps on zeros: what a step takes
    python run.py Hopper-v5 [return to ask for] an episode in an environment of Gymnasium (module:id imports module)

For policy.onnx it needs numpy and onnxruntime, nothing else.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


class Policy:
    """Acts in ``batch`` environments at once and keeps their state; ``about`` is what policy.json says."""

    def __init__(self, folder=Path(__file__).parent, batch=1):
        self.about = json.loads((Path(folder) / "policy.json").read_text())
        self.model, self.batch, self.begun = load(Path(folder) / self.about["file"]), batch, False
        zeros = self.zeros()
        self.state = {name: zeros[name] for name in self.about["state"]}

    def zeros(self):
        """An array for every input."""
        return {i["name"]: np.zeros((self.batch, *i["shape"][1:]), i["dtype"]) for i in self.about["inputs"]}

    def __call__(self, shown):
        """Actions [B, …] for arrays [B, …] by name: all inputs but the state. ``reset`` begins an episode."""
        given = shown | self.state
        feed = {i["name"]: np.ascontiguousarray(given[i["name"]], i["dtype"]) for i in self.about["inputs"]}
        action, *state = self.model(feed)
        self.state, self.begun = dict(zip(self.state, state, strict=True)), True
        return action


def load(path):
    """A function from arrays by name to the list of outputs; ONNX Runtime on one thread: a step is small."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)
    import torch

    module = torch.export.load(path).module()
    inference = torch.inference_mode()
    return inference(lambda feed: [x.numpy() for x in module(*map(torch.from_numpy, feed.values()))])


def play(policy, env, target=0.0, seed=None, on_step=None):
    """The return of an episode in a Gymnasium environment, asked for ``target`` where the policy takes such a wish.
    ``on_step(shown, action)`` hears of every step."""
    names = [i["name"] for i in policy.about["inputs"]]
    observation, _ = env.reset(seed=seed)
    action, wish, total, t, done = policy.about["first_action"], float(target), 0.0, 0, False
    reset = not (policy.about["keeps_memory"] and policy.begun)
    while not done:
        shown = {"observation": observation, "previous_action": action, "return_to_go": wish, "timestep": t}
        shown["reset"] = reset and t == 0
        if isinstance(observation, dict):
            shown |= {f"observation.{key}": value for key, value in observation.items()}
        if "action_masks" in names:
            shown["action_masks"] = env.get_wrapper_attr("action_masks")()
        row = {name: np.asarray(value)[None] for name, value in shown.items() if name in names}
        action = policy(row)[0]
        if on_step:
            on_step(row, action)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, wish, t, done = total + float(reward), wish - float(reward), t + 1, terminated or truncated
    return total


if __name__ == "__main__":
    policy = Policy()
    if len(sys.argv) > 1:
        import gymnasium

        env = gymnasium.make(sys.argv[1])
        shapes = {i["name"]: tuple(i["shape"][1:]) for i in policy.about["inputs"]}
        if shapes.get("observation", env.observation_space.shape) != env.observation_space.shape:
            env = gymnasium.wrappers.FlattenObservation(env)
        print("return", play(policy, env, *map(float, sys.argv[2:3])))
    else:
        zeros, begin = policy.zeros(), time.perf_counter()
        for _ in range(1000):
            action = policy(zeros)
        print(f"{1000 * (time.perf_counter() - begin):.0f} µs per step; the last action: {action[0]}")
