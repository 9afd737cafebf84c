"""AGPO in other trainers. Nothing here is imported unless that trainer is there."""
