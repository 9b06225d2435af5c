"""``python -m pl_rl``."""

from pl_rl.cli import main

if __name__ == "__main__":
    main()
