"""Running data sets through a composed graph: scores, sweeps, comparisons."""
