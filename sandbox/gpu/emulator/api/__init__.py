"""Wire formats of the kubelet; each `_pb2` is generated from the `.proto` beside it."""
