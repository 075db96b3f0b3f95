"""``python -m fastio_server``: the same as ``fastio serve``."""

import sys

from fastio.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
