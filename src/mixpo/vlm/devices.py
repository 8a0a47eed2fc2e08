"""What this machine can compute on. Asks the libraries, changes nothing."""

from __future__ import annotations


def devices() -> list[str]:
    """One line for each device that torch can use, the CPU first."""
    import torch

    found = [f"cpu: {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    return found
