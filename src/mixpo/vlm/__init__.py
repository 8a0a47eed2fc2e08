"""Vision-language models of `transformers`: loading, encoding prompts, generating."""
