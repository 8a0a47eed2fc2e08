"""Preference pairs from judged answers: correctness, DropoutNTP, their statistics and exports. Knows nothing about models."""
