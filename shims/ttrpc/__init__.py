"""ttrpc: containerd's small RPC protocol, which has no other Python implementation.

``frames``, ``envelope`` and ``streams`` are pure: bytes in, events out, no asyncio, socket or os.
``server`` and ``client`` put them on asyncio; ``adapters`` lets code that grpcio-tools generated
run on top. Nothing here imports grpc or the protobuf library: message classes are the caller's,
and need only ``FromString`` and ``SerializeToString``. The wire: protos/PROTOCOL.md.
"""
