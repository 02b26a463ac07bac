"""Sabotaged twins: scenarios that must not pass. They are run by test_twins.py, never collected as tests themselves."""

collect_ignore_glob = ["*.yaml"]
