"""A container's root directory: what is mounted there, and taken away again."""

from __future__ import annotations

from collections.abc import Sequence

from dunnage.container.bundle import Bundle
from dunnage.container.facts import Mount
from dunnage.container.host import Host
from dunnage.errors import Error


class Rootfs:
    """The mounts of one container, none where its client has made the root itself. ``name`` is the container's."""

    def __init__(self, name: str, bundle: Bundle, mounts: Sequence[Mount], host: Host) -> None:
        self.mounts = tuple(mounts)
        self._name = name
        self._bundle = bundle
        self._host = host

    async def mount(self) -> None:
        """Make all the mounts or none. Raises Error."""
        if not self.mounts:
            return
        self._bundle.make_rootfs()
        try:
            await self._host.mount(self._name, self._bundle.rootfs, self.mounts)
        except Error as error:
            raise type(error)(f"failed to mount rootfs component: {error}") from error

    async def unmount(self) -> Error | None:
        """Unmount all; why it failed, if so."""
        if not self.mounts:
            return None
        try:
            await self._host.unmount(self._name, self._bundle.rootfs)
        except Error as error:
            return type(error)(f"failed rootfs umount: {error}")
        return None
