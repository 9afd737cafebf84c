"""What the results store says: tables, comparisons, curves, figures, a page, exports. The command is in `command`."""
