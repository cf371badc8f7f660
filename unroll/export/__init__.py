"""How to leave: one step of a trained policy, written for runtimes that know nothing of this toolkit."""

from unroll.errors import ExportError
from unroll.export.folder import write_export
from unroll.export.formats import FORMATS, Format
from unroll.export.steps import ActorStep, DecisionStep, Port, Step

__all__ = ["FORMATS", "ActorStep", "DecisionStep", "ExportError", "Format", "Port", "Step", "write_export"]
