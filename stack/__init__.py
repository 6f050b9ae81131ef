"""Composition: the services and the servers that they need, as one running system.

In: an operator's headrace.toml and a directory for the state. Out: running processes, and a file that says where they listen.
It decides nothing about arrivals, runs or versions, and no service imports it.
"""
