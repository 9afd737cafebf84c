"""`python -m agpo.integrations.verl.main key=value ...`: verl's main program after the checks, in verl's python."""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import sys

from evals.errors import command


@command
def main() -> int:
    from agpo.integrations.verl.require import require_plugin

    require_plugin()
    from verl.trainer import main_ppo

    main_ppo.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
