"""Measures the flow from outside, on real servers: how long from new rows to the consumer's webhook, beside the same work done by hand.

In: nothing but real flights. Out: a table of medians by step, and ratios. Never: a test; no duration is asserted.
"""
