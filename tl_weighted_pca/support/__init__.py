"""What every room may use: files, interrupts, digests, seeded randomness, the style of figures."""
