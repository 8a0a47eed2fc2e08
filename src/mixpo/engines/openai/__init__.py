"""The engine for OpenAI-compatible servers: `client` sends requests, `probe` finds out what it supports, `sampler` gets responses."""
