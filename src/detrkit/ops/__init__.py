"""Kernels and arithmetic behind one function each; the reference is pure torch and runs on every device."""
