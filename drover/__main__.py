"""`python -m drover`."""

from drover.cli import main

if __name__ == "__main__":
    main()
