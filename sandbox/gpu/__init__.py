"""Emulated GPUs: profiles and control on this side, `emulator/` inside the cluster."""
