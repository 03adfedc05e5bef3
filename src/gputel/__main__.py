"""`python -m gputel`."""

from gputel.cli import main

if __name__ == "__main__":
    main()
