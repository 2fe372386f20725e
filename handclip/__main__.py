"""`python -m handclip` is `handclip`, for where that script is not on the path."""

from handclip.cli import main

if __name__ == "__main__":
    main()
