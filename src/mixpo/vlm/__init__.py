"""A vision-language model of `transformers`: loading it, putting prompts to it, cutting its answers."""
