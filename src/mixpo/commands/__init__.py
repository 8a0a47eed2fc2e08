"""What the command line does in addition to running stages."""
