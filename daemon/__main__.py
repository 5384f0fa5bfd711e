"""`python -m daemon …` is `fullpass …`."""

from daemon.cli import main

if __name__ == "__main__":
    main()
