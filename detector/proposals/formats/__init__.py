"""Proposals as other programs keep them: one module for each family of formats."""
