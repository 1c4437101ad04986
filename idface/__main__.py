"""`python -m idface ...`, the same as `idface ...`."""

from idface.cli import main

if __name__ == "__main__":
    main()
