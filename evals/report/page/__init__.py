"""One HTML page with everything: summary, curves, configuration, lineage and every sample, without a network."""
