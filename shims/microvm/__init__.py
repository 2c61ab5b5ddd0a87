"""The engine: boots, clones and stops microVMs with QEMU.

``plan`` is pure (what to start → argument list and device table); ``machine`` realises a plan
inside one exit stack; ``templates`` and ``keeper`` make every VM but the first a clone. Modules
here know the guest only through ``shims.guest`` and nothing of containerd. The shim's long-lived
process imports this package, so it needs neither pydantic nor anything larger than asyncio.
"""
