"""Executors that make shards on many machines, one file per kind of cluster. Nothing here decides what a shard contains."""
