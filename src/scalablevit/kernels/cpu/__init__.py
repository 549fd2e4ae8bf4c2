"""Kernels for CPUs: C++ that is compiled for the machine it runs on, when it is first wanted, and kept."""
