"""Clients of the policy and the env service."""
