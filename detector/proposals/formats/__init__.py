"""Proposal formats of other programs: one module per family of formats."""
