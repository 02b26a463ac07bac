"""This machine: looked at by `doctor`, made ready by `prepare`, asked through `client`."""

from sandbox.host.checks import Check, as_json, as_table, doctor, exit_code, require
from sandbox.host.engine import Engine, client, look
from sandbox.host.preparing import prepare

__all__ = ["Check", "Engine", "as_json", "as_table", "client", "doctor", "exit_code", "look", "prepare", "require"]
