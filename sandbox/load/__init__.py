"""Load: a streaming client under Locust in a process of its own, and what starts and watches it.

Nothing here may import Locust or gevent at this level: both patch the interpreter they are imported into.
"""
