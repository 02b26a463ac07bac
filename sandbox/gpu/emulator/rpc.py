"""gRPC over unix sockets: servers put together from plain functions, and the ways to call one. Nothing is generated."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
_THREADS = 4
# A unix socket's path would be sent as the authority, which servers written in Go refuse.
_CLIENT = [("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", 64 << 20)]


def unary(function: Callable[[Request, grpc.ServicerContext], Reply], request: type[Request]) -> grpc.RpcMethodHandler:
    """One request, one reply."""
    return grpc.unary_unary_rpc_method_handler(function, request.FromString, _bytes)


def stream(
    function: Callable[[Request, grpc.ServicerContext], Iterator[Reply]], request: type[Request]
) -> grpc.RpcMethodHandler:
    """One request, any number of replies. It holds a thread of its server for as long as it goes on."""
    return grpc.unary_stream_rpc_method_handler(function, request.FromString, _bytes)


def service(name: str, methods: Mapping[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
    """The handlers of one service, such as `v1beta1.DevicePlugin`, by the names of its methods."""
    return grpc.method_handlers_generic_handler(name, methods)


def serve(socket: Path, handlers: Sequence[grpc.GenericRpcHandler], *, threads: int = _THREADS) -> grpc.Server:
    """A server that listens at `socket`; a socket that somebody left there is removed first.

    `threads` must be more than the streams that can be open at once. End it with `end`.
    """
    socket.unlink(missing_ok=True)
    pool = ThreadPoolExecutor(threads, thread_name_prefix=socket.stem)
    server = grpc.server(pool, handlers=handlers, options=[("grpc.so_reuseport", 0)])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


def end(server: grpc.Server, socket: Path, *, grace: float = 0.2) -> None:
    """Stop serving: what is under way gets `grace` seconds; the socket is removed."""
    server.stop(grace).wait(grace + 1.0)
    socket.unlink(missing_ok=True)


@contextlib.contextmanager
def connect(socket: Path) -> Iterator[grpc.Channel]:
    """A connection to whoever listens at `socket`; made at the first call."""
    # without a pool of their own, channels to the same path share one connection, and that one's back-off
    channel = grpc.insecure_channel(f"unix:{socket}", options=[*_CLIENT, ("grpc.use_local_subchannel_pool", 1)])
    try:
        yield channel
    finally:
        channel.close()


def stub(channel: grpc.Channel, method: str, _request: type[Request], reply: type[Reply]) -> Callable[..., Reply]:
    """Call `method`, such as `/v1.PodResourcesLister/List`, as `call(request, timeout=…)`. Raises grpc.RpcError."""
    call: Callable[..., Reply] = channel.unary_unary(method, _bytes, reply.FromString)
    return call


def stream_stub(
    channel: grpc.Channel, method: str, _request: type[Request], reply: type[Reply]
) -> Callable[..., Iterator[Reply]]:
    """As `stub`, for a method with many replies; the iterator has `cancel()`."""
    call: Callable[..., Iterator[Reply]] = channel.unary_stream(method, _bytes, reply.FromString)
    return call


def wake_at_end(context: grpc.ServicerContext, condition: threading.Condition) -> None:
    """Wake whoever waits on `condition` when this call ends: a stream that waits for news hears that nobody listens.

    The stream then sees `context.is_active()` false.
    """

    def wake() -> None:
        with condition:
            condition.notify_all()

    if not context.add_callback(wake):  # it has ended already
        wake()


def _bytes(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized
