"""How memory is handed out in a process that trains without a GPU.

glibc 2.36 (and others before 2.38) cuts a tensor out of a piece that is larger by its alignment, and keeps the offcuts in two caches, from
which small objects are made. Those live as long as a pass's graph, so that the place of a tensor that is gone takes no other of its size:
each layer's forward pass leaves holes, half as much again as what is kept for the way back. Without the caches offcuts go back to their
neighbours. On six layers of SmolLM2's shape 125 MiB of holes beside 212 kept became 33, for 2.88 instead of 2.69 CPU s, beside other work.
Mapping each tensor by itself (`M_MMAP_THRESHOLD`) leaves as few, and costs twice the CPU seconds: the kernel clears every page anew.
"""

# Read by the loader, before any code of ours; other C libraries look for no such variable.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
