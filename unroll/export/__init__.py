"""Write one step of a trained policy for runtimes that know nothing of this toolkit."""

from unroll.export.folder import write_export
from unroll.export.formats import FORMATS, Format

__all__ = ["FORMATS", "Format", "write_export"]
