"""The viewer: pages over a run directory for one person on one machine, served on the loopback address only."""
