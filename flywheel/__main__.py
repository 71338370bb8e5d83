"""`python -m flywheel` is `flywheel`, as torchrun starts it."""

from __future__ import annotations

from flywheel.commandline import main

if __name__ == "__main__":
    main()
