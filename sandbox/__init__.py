"""A local AI-on-Kubernetes sandbox and test harness."""

__version__ = "0.1.0"
