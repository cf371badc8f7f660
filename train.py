import sys

from unroll.commands.train import main

sys.exit(main())
