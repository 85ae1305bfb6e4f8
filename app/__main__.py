"""`python -m app` is `imagekeep`."""

from app.cli import main

if __name__ == "__main__":
    main()
