"""The first schema. New stores are created from `evals.store.database.schema`; migrations only update older ones.

Never edit a released revision. Later ones are files beside this one, numbered 0002, 0003, ...
"""

revision = "0001"
down_revision = None
