"""What clients saw, written down, and the checks that decide whether it was right. Standard library only."""
