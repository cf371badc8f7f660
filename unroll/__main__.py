"""``python -m unroll`` is the command ``unroll``."""

import sys

from unroll.cli import main

sys.exit(main())
