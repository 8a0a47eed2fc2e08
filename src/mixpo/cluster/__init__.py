"""Shards made on many machines. One file for each kind of cluster; nothing here decides what a shard holds."""
