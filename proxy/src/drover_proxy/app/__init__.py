"""The shell around the core: sockets, NVML, Ollama's answers become events; commands become I/O.

service.py     starts, drains, stops                     runtime.py     events in, commands out
reloading.py   what changes while it runs                handover.py    from one process to the next
gateway.py     what each request is                      call.py        one request that the scheduler knows
instance.py    one Ollama instance: health, runners      catalogue.py   the models on disk, and their names
listing.py     lists of models over all instances        management.py  pull, create, delete, copy, blobs
memory.py      the GPUs' memory, sampled or configured   rejections.py  what is told of requests turned down
inference.py   requests that need a runner               variants.py    how /v1 gets a context of its own
record.py      counts, and a line, of what is over       recall.py      what the core learned, in a file
siblings.py    pages that processes show one another     parts.py       what all of these share
coreconfig.py  the core's configuration                  wireconfig.py  the wire's
"""
