"""`python -m agpo.integrations.verl.main key=value ...`: our checks, then verl's main program, in verl's python."""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import sys
from pathlib import Path

from agpo.integrations.verl import Json
from evals.errors import UserError, command


@command
def main() -> int:
    from agpo.integrations.verl.guards import require_plugin

    require_plugin()
    import hydra
    from omegaconf import DictConfig, OmegaConf
    from verl.trainer import main_ppo

    from agpo.integrations.verl.guards import check_config, check_objective
    from agpo.integrations.verl.worker import objective_in

    refused: list[UserError] = []

    def checked(config: DictConfig) -> None:
        plain: Json = OmegaConf.to_container(config, resolve=True)
        try:
            check_config(plain)
            check_objective(objective_in(plain["agpo"])[0])
        except UserError as e:
            refused.append(e)  # Hydra would print a traceback
            return
        main_ppo.main.__wrapped__(config)

    folder = str(Path(main_ppo.__file__).parent / "config")
    hydra.main(config_path=folder, config_name="ppo_trainer", version_base=None)(checked)()
    if refused:
        raise refused[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
