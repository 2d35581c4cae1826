"""`python -m uni_dpo.cli`: the command line of the environment that this Python belongs to."""

from uni_dpo.cli import main

main()
