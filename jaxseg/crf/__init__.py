"""Conditional random fields: energies, Gaussian filtering, mean field."""
