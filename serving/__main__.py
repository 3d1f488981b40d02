"""`python -m serving`: the commands that need no training packages."""

from serving.cli import main

if __name__ == "__main__":
    main()
