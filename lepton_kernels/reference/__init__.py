"""Plain PyTorch implementations: the oracle of the tests and the kernel of last resort."""
