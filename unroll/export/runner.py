"""Run the exported policy beside this file. policy.onnx needs numpy and onnxruntime, policy.pt2 numpy and torch."""

import json
from pathlib import Path

import numpy as np


class Policy:
    """A policy that acts in ``batch`` environments at once and keeps their state.

    ``about`` is the content of policy.json; ``zeros`` has an array of zeros for each input.
    """

    def __init__(self, folder=Path(__file__).parent, batch=1):
        folder = Path(folder)
        self.about = json.loads((folder / "policy.json").read_text())
        self.model = load(folder / self.about["file"])
        self.state = {}
        self.zeros = {i["name"]: np.zeros((batch, *i["shape"][1:]), i["dtype"]) for i in self.about["inputs"]}

    def __call__(self, shown):
        """Return the actions [B, …] for arrays [B, …] by name: all inputs but the state. ``reset`` begins an episode.

        Arrays of other types are converted, and inputs that the policy does not have are ignored.
        """
        state = self.state or {name: self.zeros[name] for name in self.about["state"]}
        given = shown | state
        if "action_masks" in shown and not np.isin(shown["action_masks"], (0, 1)).all():
            raise ValueError("action_masks hold true or 1 where an action is allowed, and false or 0 elsewhere")
        feed = {name: np.ascontiguousarray(given[name], zero.dtype) for name, zero in self.zeros.items()}
        action, *following = self.model(feed)
        self.state = dict(zip(self.about["state"], following, strict=True))
        return action


def load(path):
    """Load a model as a function from arrays by name to the list of outputs."""
    if path.suffix == ".onnx":
        import onnxruntime

        # A step is so small that it is fastest on one thread.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)

    import torch

    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(feed):
        tensors = [torch.from_numpy(array) for array in feed.values()]
        return [output.numpy() for output in module(*tensors)]

    return run
