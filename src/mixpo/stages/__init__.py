"""The stages of a run. Each is a job that reads the shards of earlier ones and writes its own."""
