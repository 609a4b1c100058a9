"""Kernels beside what PyTorch offers, on a GPU: a file an operator; see case.py for what each of them holds."""
