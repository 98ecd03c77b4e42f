"""The switch of the fault layer, fault.c, between a daemon and its disk."""

import mmap
import struct

WRITES, SYNCS, READS, ALLOCATIONS, HINTS = 1, 2, 4, 8, 16
# Instead of an errno: nothing is done, and success is reported.
LIE = 0
ALL = 0xFFFFFFFF
LAYOUT = "<IiII64s"


class Faults:
    """Of the daemon of one volume, from its next start on."""

    def __init__(self, library, volume, control):
        control.write_bytes(bytes(mmap.PAGESIZE))
        with open(control, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        volume.preload = {"LD_PRELOAD": str(library), "FAULT_BELOW": str(volume.backing),
                          "FAULT_CONTROL": str(control)}

    def switch(self, calls, error, name="", count=ALL):
        """Lets the next `count` such calls fail, for files with `name` in their path."""
        self.off()
        struct.pack_into(LAYOUT, self.memory, 0, 0, error, 0, count, name.encode())
        struct.pack_into("<I", self.memory, 0, calls)

    def off(self):
        struct.pack_into("<I", self.memory, 0, 0)

    def hits(self):
        return struct.unpack_from(LAYOUT, self.memory)[2]
