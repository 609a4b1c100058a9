"""`python -m seeklet.finetune`: the command `seeklet`, as `accelerate launch -m` starts it."""

from .cli import main

if __name__ == "__main__":
    main()
