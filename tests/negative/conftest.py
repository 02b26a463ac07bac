"""Sabotaged twins: scenarios that must not pass. No tests by themselves: tests/live/test_scenarios.py runs them."""

collect_ignore_glob = ["*.yaml"]
