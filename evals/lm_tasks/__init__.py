"""`--bench lm_eval:<task>`: any task of lm-eval over our engines, every response in the store.

Prompts, filters and metrics are lm-eval's. Generation goes through our engines, so responses have tokens, seeds and
finish reasons, and a killed run goes on; scoring given continuations (multiple choice, perplexity) is asked of the
engines that can.
"""

import logging

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its hints are about its own command line
