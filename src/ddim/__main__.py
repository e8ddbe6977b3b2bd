"""`python -m ddim` is the `ddim` command; `accelerate launch -m ddim train …` needs it."""

import sys

from ddim.cli import main

if __name__ == "__main__":
    sys.exit(main())
