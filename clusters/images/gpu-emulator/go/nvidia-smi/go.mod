module sandbox.local/gpu-emulator/nvidia-smi

go 1.26.0
