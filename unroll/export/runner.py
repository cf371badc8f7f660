"""Runs the exported policy beside this file; for policy.onnx it needs numpy and onnxruntime, nothing else."""

import json
from pathlib import Path

import numpy as np


class Policy:
    """Acts in ``batch`` environments at once and keeps their state; ``about`` is what policy.json says."""

    def __init__(self, folder=Path(__file__).parent, batch=1):
        self.about = json.loads((Path(folder) / "policy.json").read_text())
        self.model, self.state = load(Path(folder) / self.about["file"]), {}
        self.zeros = {i["name"]: np.zeros((batch, *i["shape"][1:]), i["dtype"]) for i in self.about["inputs"]}

    def __call__(self, shown):
        """Actions [B, …] for arrays [B, …] by name: all inputs but the state. ``reset`` begins an episode."""
        given = shown | (self.state or {name: self.zeros[name] for name in self.about["state"]})
        if "action_masks" in shown and not np.isin(shown["action_masks"], (0, 1)).all():
            raise ValueError("action_masks hold true or 1 where an action is allowed, and false or 0 elsewhere")
        feed = {name: np.ascontiguousarray(given[name], zero.dtype) for name, zero in self.zeros.items()}
        action, *state = self.model(feed)
        self.state = dict(zip(self.about["state"], state, strict=True))
        return action


def load(path):
    """A function from arrays by name to the list of outputs, on one thread with ONNX Runtime: a step is small."""
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
