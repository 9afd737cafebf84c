"""python -m evals.report: see `evals.report.command`."""

import sys

from evals.report.command import main

sys.exit(main())
