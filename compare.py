import sys

from unroll.commands.compare import main

sys.exit(main())
