"""`python -m unirouter_integrations.cli`."""

from unirouter_integrations.cli import main

main(prog_name="unirouter")
