"""`--bench lm_eval:<task>`: any task of lm-eval over our engines, every response in the store.

Prompts, filters and metrics are lm-eval's. Our engines generate, so responses have tokens, seeds and finish reasons,
and a killed run resumes. Multiple choice and perplexity need an engine that scores given continuations.
"""

import logging

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its hints are about its own command line
