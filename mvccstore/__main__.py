"""`python -m mvccstore` is the `mvccstore` command."""

import sys

from mvccstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
