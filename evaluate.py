import sys

from unroll.commands.evaluate import main

sys.exit(main())
