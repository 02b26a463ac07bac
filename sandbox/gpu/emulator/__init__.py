"""What runs on a node in the place of NVIDIA's driver and operator. Imports nothing of the rest of the sandbox.

It is copied into the image `gpu-emulator` as it stands: standard library, grpcio, protobuf and prometheus-client only.
"""
