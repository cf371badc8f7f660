import sys

from unroll.commands.train import main

if __name__ == "__main__":  # the workers of --vector processes import this file
    sys.exit(main())
