"""The door: `python web.py [--port 5005]`, the same as `promptgen serve`."""

import sys

from promptgen.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
