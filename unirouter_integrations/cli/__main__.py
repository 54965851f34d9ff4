"""`python -m unirouter_integrations.cli`."""

import sys

from unirouter_integrations.cli import main

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, whose files would come before the packages of providers
main(prog_name="unirouter")
