"""How to leave: one step of a trained policy, written for runtimes that know nothing of this toolkit."""

from deploy.folder import write_export
from deploy.formats import FORMATS, ExportError, Format
from deploy.steps import ActorStep, DecisionStep, Port, Step

__all__ = ["FORMATS", "ActorStep", "DecisionStep", "ExportError", "Format", "Port", "Step", "write_export"]
