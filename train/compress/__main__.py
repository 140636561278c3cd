"""`python -m train.compress RUN --reduce 10`."""

import sys

from train.compress.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
